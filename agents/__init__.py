"""Concrete agents; importing this package registers their names."""

from steca_gym.registry import agents, reflectors

agents.register("expert", "steca_gym.agents.scripted:ExpertAgent")
agents.register("searching", "steca_gym.agents.searching:SearchingAgent")
agents.register("random", "steca_gym.agents.scripted:RandomAgent")
agents.register("replay", "steca_gym.agents.scripted:ReplayAgent")
agents.register("human", "steca_gym.agents.human:HumanAgent")
agents.register("imported", "steca_gym.agents.scripted:ImportedAgent")
agents.register("transformers", "steca_gym.agents.transformers:TransformersAgent")
agents.register("vllm", "steca_gym.agents.vllm:VLLMAgent")
agents.register("openai", "steca_gym.agents.openai:OpenAIAgent")

reflectors.register("openai", "steca_gym.agents.openai:OpenAIReflector")
