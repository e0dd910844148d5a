import pytest

from steca_gym.agent import Message
from steca_gym.chat import ChatCodec, codec_of, encode_conversation
from steca_gym.errors import CheckpointError, ConfigError
from tests.fakes import CHATML, tiny_tokenizer

DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML
MERGED_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set head = '[' + messages[0]['content'] + ']' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}<|im_start|>{{ head if loop.first else '' }}"
    "{{ m['content'] | trim }}|{% else %}{{ m['content'] | trim }}<|im_end|>{% endif %}{% endfor %}"
)
BARE = (
    "{% for m in messages %}<|im_start|>{{ m['role'][0] }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a{% endif %}"
)
TALK = (
    Message("user", "You are in red room 1."),
    Message("assistant", "Thought: I go right.\nAction: right"),
    Message("user", "Nothing happens.\n"),
    Message("assistant", "Action: open"),
    Message("user", "The end"),
)


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, MERGED_SYSTEM, BARE])
@pytest.mark.parametrize("head", [(), (Message("system", "Be brief."),)])
def test_it_renders_what_the_template_renders(template, head):
    tokenizer = tiny_tokenizer(template)
    talk = (*head, *TALK)
    plain = [m.as_dict() for m in talk]
    ids, mask = encode_conversation(tokenizer, talk)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(plain, tokenize=False)
    assert ids == tokenizer.apply_chat_template(plain)["input_ids"]
    asked, _ = encode_conversation(tokenizer, talk, for_generation=True)
    assert tokenizer.decode(asked) == tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    mine = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert mine == "Thought: I go right.\nAction: right<|im_end|>Action: open<|im_end|>"
    assert len(ids) == len(mask)


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, MERGED_SYSTEM, BARE])
def test_prompts_only_grow_and_parts_add_up(template):
    codec = ChatCodec(tiny_tokenizer(template))
    whole, _ = codec.encode(TALK)
    for behind in (1, 3):
        prompt, _ = codec.encode(TALK[:behind], for_generation=True)
        assert whole[: len(prompt)] == prompt
        rest, rest_mask = codec.encode(TALK, start=behind + 1)
        said = codec.tokenize(TALK[behind].content)
        assert [*prompt, *said, *codec.end_ids, *rest] == whole
        assert len(rest) == len(rest_mask)


def test_sampled_ids_are_repeated_to_the_id():
    tokenizer = tiny_tokenizer()
    odd = (200, 9, 200)
    talk = (TALK[0], Message("assistant", tokenizer.decode(odd), odd), TALK[2])
    ids, mask = encode_conversation(tokenizer, talk)
    assert tuple(i for i, m in zip(ids, mask, strict=True) if m) == (*odd, *codec_of(tokenizer).end_ids)


def test_examples_may_end_with_a_user():
    talk = (Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("assistant", "d"))
    tokenizer = tiny_tokenizer()
    ids, _ = encode_conversation(tokenizer, talk)
    assert ids == tokenizer.apply_chat_template([m.as_dict() for m in talk])["input_ids"]


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "no special token"),
        (
            "{% for m in messages %}{{ m['content'] }}{% if loop.last %}!{% endif %}<|im_end|>{% endfor %}",
            "not append-only",
        ),
        ("{{ messages | length }}<|im_end|>", "not shown|not append-only"),
        ("{{ raise_exception('no such role') }}", "refuses a conversation"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_in_one_line(template, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        ChatCodec(tiny_tokenizer(template), name="folder")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("folder: ")


def test_parts_begin_behind_an_assistant():
    with pytest.raises(ConfigError, match="behind an assistant"):
        ChatCodec(tiny_tokenizer()).encode(TALK, start=1)


def test_a_new_template_gets_a_new_code():
    tokenizer = tiny_tokenizer()
    first = codec_of(tokenizer)
    assert codec_of(tokenizer) is first
    tokenizer.chat_template = BARE
    assert codec_of(tokenizer) is not first
