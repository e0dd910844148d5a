"""Comparing step rewards along a trajectory: when a sample is asked for, and what is made of the decisions.

The statistics are the estimator's. Here are the rules around a comparison: a greedy rollout that must fail, ties,
samples that ran out, continuations that were cut, and actions that are fatal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from steca_gym.calibration.deviation import CONFIRMED, WON_ANYWAY, Detection, DetectionCase, count_verdicts
from steca_gym.calibration.exploration import ExploredStep, cost, sampling
from steca_gym.calibration.records import Counts, StepVerdict
from steca_gym.calibration.schedule import Cancel, Procedure, SampleRequest
from steca_gym.calibration.trial import StepTrial, state_key
from steca_gym.collectors.episodes import Episode, EpisodeRequest
from steca_gym.errors import StecaError
from steca_gym.step_rewards import FixedRewards, StepRewards, make_step_rewards
from steca_gym.step_rewards.values import Comparison, Decision, StateValue, derive_seed
from steca_gym.trajectory import Trajectory

_LOST_SAMPLES = 3
"""lost continuations from which on "all were lost" is said"""


class StepComparer:
    """Compares the steps of one exploration; ``run`` is the procedure, ``detection`` its result."""

    def __init__(self, case: DetectionCase) -> None:
        """Prepare a trial for every step that is looked at."""
        self.case, self.exploration = case, case.exploration
        self.settings, self.reward_settings = case.settings, case.reward_settings
        self.rewards = case.rewards
        self.counts = Counts()
        self.expert_better: list[int] = []
        self._asked: set[tuple[int, int]] = set()
        self._attempts: dict[tuple[int, int], int] = {}
        self._turns_of: dict[int, int] = {}
        self._outstanding = 0
        self._num_turns = len(self.exploration.expert)
        self.trials = [
            self._trial(explored)
            for explored in self.exploration.steps
            if not explored.same_action or self.settings.value_every_step
        ]
        self.rewards.begin([t.comparison for t in self.trials if not t.explored.same_action])

    def _trial(self, explored: ExploredStep) -> StepTrial:
        t = explored.step
        token = f"{self.exploration.expert.trajectory_id}/{t}"
        turns = self._turns(t, self.reward_settings.max_steps)
        before, after = self.exploration.forks[t], explored.fork
        expert_key, agent_key = (
            state_key(before, self.reward_settings, turns),
            state_key(after, self.reward_settings, turns),
        )
        if expert_key is not None and expert_key == agent_key:
            # Nothing changed, but the history now holds a futile turn, which an agent may keep repeating.
            agent_key = ("after", explored.turn.action, agent_key)
        if self.reward_settings.count_greedy_rollout and agent_key is not None:
            agent_key = ("rollout", agent_key)  # its first outcome is no sample like those of others
        exact = explored.trajectory.score if explored.over else None
        cache = self.case.cache
        expert = cache.get(expert_key, before, None, f"{token}/expert")
        agent = cache.get(None if exact is not None else agent_key, after, exact, f"{token}/agent")
        for value in (expert, agent):
            self._turns_of[id(value)] = turns
        comparison = Comparison(step=t, expert=expert, agent=agent, token=token)
        trial = StepTrial(explored, comparison, agent, needs_rollout=not explored.same_action)
        if explored.over:
            trial.rollout = explored.trajectory
        return trial

    def _turns(self, step: int, most: int) -> int:
        """Turns that the agent gets from a step on."""
        ratio = self.reward_settings.max_length_ratio
        left = self._num_turns - step
        return most if ratio is None else min(most, math.ceil(ratio * left) + 4)

    # -- the procedure ---------------------------------------------------------------------------------------

    def run(self, *, stop_at_first: bool) -> Procedure[None]:
        """Decide the steps in order, up to the first deviation or all of them; then what D_s needs."""
        every = self.settings.value_every_step
        while True:
            open_trials = self._settle_all(stop_at_first=stop_at_first and not every)
            if not open_trials:
                break
            requests: list[SampleRequest | Cancel] = []
            in_order = stop_at_first and not every
            reach = 1 + self.reward_settings.lookahead if in_order else len(open_trials)
            needed = 1.0
            for trial in open_trials[:reach]:
                near, probable = self.rewards.priority(trial.comparison)
                # What is certainly needed comes before what may be; then what is nearest to its decision.
                priority = needed * (0.9 + 0.1 * near) if needed == 1 else 0.7 * needed
                requests += self._requests(trial, self.rewards, trial.comparison, priority)
                if in_order:
                    needed *= 1 - probable
            yield from self._play(requests)
        yield from self._value_expert_steps(stop_at_first=stop_at_first)

    def _settle_all(self, *, stop_at_first: bool) -> list[StepTrial]:
        """Settle what can be; returns the trials that are still open, none after a first deviation."""
        for trial in self.trials:
            self._settle(trial)
            if stop_at_first and trial.deviates:
                return []
            if stop_at_first and trial.verdict is None:
                break
        return [t for t in self.trials if t.verdict is None]

    def _play(self, requests: list[SampleRequest | Cancel]) -> Procedure[None]:
        self._outstanding += sum(isinstance(r, SampleRequest) for r in requests)
        if self._outstanding == 0:
            raise StecaError("a step-reward estimator neither decides nor asks for samples; this is a defect of it")
        self._take(*(yield requests))
        self._outstanding -= 1

    def _value_expert_steps(self, *, stop_at_first: bool) -> Procedure[None]:
        """Compare r_s(s_t, a_t) with r_s(s_t, a_hat_t): where the expert's is higher, its way from t on is of D_s."""
        rewards = self._plain_rewards()
        open_ones: list[tuple[StepTrial, Comparison]] = []
        for trial in self.trials:
            if trial.explored.same_action or not self._failed(trial):
                continue
            open_ones.append((trial, self._expert_step_comparison(trial)))
            if stop_at_first and trial.deviates:
                break
        for trial, comparison in open_ones:
            trial.last_wanted = None
            rewards.begin([comparison])
        first = True
        while open_ones:
            waiting = []
            for trial, comparison in open_ones:
                decision = rewards.decide(comparison)
                if decision is not None:
                    self._note_expert_step(trial, decision)
                elif self.settings.value_expert_step and (trial.deviates or self.settings.value_every_step):
                    waiting.append((trial, comparison))
            open_ones = waiting
            requests: list[SampleRequest | Cancel] = [Cancel()] if first else []
            if first:
                self._outstanding, first = 0, False
                self._forget_open_requests()
            for trial, comparison in open_ones:
                requests += self._requests(trial, rewards, comparison, 0.95)
            if open_ones:
                yield from self._play(requests)

    def _forget_open_requests(self) -> None:
        """After a Cancel: what was asked for and has not come may be asked for again."""
        values = {id(v): v for t in self.trials for v in (t.comparison.expert, t.agent, t.comparison.agent)}
        self._asked = {(who, i) for who, i in self._asked if who in values and values[who].has(i)}

    def _plain_rewards(self) -> StepRewards:
        """The estimator without delta and without a rule for ties."""
        if self.reward_settings.estimator == "critic":
            return FixedRewards(self.reward_settings, 0.0)
        return make_step_rewards(self.reward_settings, judge=self.case.judge)

    def _expert_step_comparison(self, trial: StepTrial) -> Comparison:
        t, expert = trial.explored.step, self.exploration.expert
        fork = self.exploration.forks[t + 1]
        turns = self._turns(t + 1, self.reward_settings.max_steps)
        # The last step's reward is the outcome itself.
        exact = expert.score if t + 1 == len(expert) else None
        key = None if exact is not None else state_key(fork, self.reward_settings, turns)
        following = next((x for x in self.trials if x.explored.step == t + 1), None)
        if following is not None and exact is None:
            value = following.comparison.expert
        else:
            value = self.case.cache.get(key, fork, exact, f"{expert.trajectory_id}/{t + 1}/expert")
        self._turns_of[id(value)] = turns
        agent = trial.comparison.agent
        if self.reward_settings.cut == "play_on" and agent.cut:
            agent = agent.played_out
        if trial.fatal and trial.fatal != "lost":
            agent = StateValue(trial.explored.fork, exact=trial.explored.trajectory.score)
        return Comparison(step=t, expert=value, agent=agent, token=f"{trial.comparison.token}/expert_step")

    def _note_expert_step(self, trial: StepTrial, decision: Decision) -> None:
        if trial.verdict is not None and decision.expert is not None:
            trial.verdict = replace(trial.verdict, expert_step_reward=decision.expert)
        if decision.verdict == "deviated":
            self.expert_better.append(trial.explored.step)

    # -- asking ----------------------------------------------------------------------------------------------

    def _requests(
        self, trial: StepTrial, rewards: StepRewards, comparison: Comparison, priority: float
    ) -> list[SampleRequest]:
        requests: list[SampleRequest] = []
        main = comparison is trial.comparison
        if main and trial.needs_rollout and not self._rollout_known(trial):
            if not trial.rollout_asked:
                trial.rollout_asked = True
                requests.append(SampleRequest(request=self._rollout_request(trial), priority=priority + 0.5))
            if not self.settings.value_every_step:
                return requests
        wanted = num_expert, num_agent = rewards.wanted(comparison)
        if trial.last_wanted == wanted:
            return requests
        trial.last_wanted = wanted
        for value, count in ((comparison.expert, num_expert), (comparison.agent, num_agent)):
            if value.exact is not None or value.broken:
                continue
            for index in range(count):
                found = self._sample(trial, value, index, priority)
                if found is not None:
                    requests.append(found)
        return requests

    def _sample(self, trial: StepTrial, value: StateValue, index: int, priority: float) -> SampleRequest | None:
        """The request for an outcome; None where it is known or under way."""
        ends = trial.agent.is_played_out(value)
        if self._waits_for_rollout(trial, value, index):
            return None
        played_on = ends and index in trial.agent.cut
        source = trial.agent if ends and not played_on else value
        if (id(source), index) in self._asked:
            return None
        self._asked.add((id(source), index))
        if value.has(index):
            self.counts += Counts(num_samples_shared=1)
            return None
        attempt = self._attempts.get((id(source), index), 0)
        request = EpisodeRequest(
            task_id=trial.explored.trajectory.task_id,
            seed=derive_seed(self.case.seed, source.token, self.settings.round, "sample", index, attempt),
            sampling=sampling(self.settings, self.reward_settings.temperature),
            start=source.fork,
            max_agent_turns=self._turns_of[id(source)] if not played_on else None,
            # The same seed and the turns so far: what follows is what an uncut continuation would have been.
            script=trial.agent.cut[index] if played_on else (),
        )
        return SampleRequest(request=request, priority=priority, value=source, index=index)

    def _waits_for_rollout(self, trial: StepTrial, value: StateValue, index: int) -> bool:
        """Whether the greedy rollout is to be this outcome, and has not come yet."""
        of_agent = value is trial.agent or trial.agent.is_played_out(value)
        counts = self.reward_settings.count_greedy_rollout and index == 0 and of_agent and trial.needs_rollout
        return counts and not self._rollout_known(trial)

    def _rollout_known(self, trial: StepTrial) -> bool:
        return trial.rollout is not None and not (trial.confirming and self._is_cut(trial.rollout))

    def _rollout_request(self, trial: StepTrial) -> EpisodeRequest:
        limit = self._turns(trial.explored.step, self.settings.max_steps)
        request = self.case.rollout_request(trial.explored, attempt=trial.rollout_attempts, max_turns=limit)
        if trial.rollout is None:
            return request
        return replace(request, script=trial.rollout.steps[len(trial.explored.trajectory) :], max_agent_turns=None)

    # -- answers ---------------------------------------------------------------------------------------------

    def _is_cut(self, trajectory: Trajectory) -> bool:
        """Whether a turn limit stopped it, so that its outcome is not known."""
        return trajectory.status == "running" and not trajectory.won and self.reward_settings.cut == "play_on"

    def _failed(self, trial: StepTrial) -> bool:
        """Whether the agent is known to fail after its action."""
        if trial.fatal:
            return True
        return trial.rollout is not None and not trial.rollout.won and not self._is_cut(trial.rollout)

    def _take(self, request: SampleRequest, episode: Episode) -> None:
        value, played, broke = request.value, episode.trajectory, episode.trajectory.status == "error"
        if value is None:
            self._take_rollout(request, episode)
            return
        played_on = request.request.max_agent_turns is None
        if broke:
            self.counts += cost([episode])
            key = (id(value), request.index)
            self._attempts[key] = self._attempts.get(key, 0) + 1
            if self._attempts[key] > self.settings.max_retries:
                value.broken = played.error or "the continuation broke"
            else:
                self._asked.discard(key)
                self._ask_again()
        elif value.has(request.index):
            self.counts += Counts(num_samples_shared=1)
            if request.index in value.cut:
                self._ask_again()
        else:
            cut = played.steps[len(value.fork.prefix) :] if self._is_cut(played) else None
            self.counts += Counts(
                num_samples=int(not played_on),
                num_cut=int(cut is not None),
                num_played_on=int(played_on),
                num_sampled_tokens=episode.num_sampled_tokens,
                num_env_steps=episode.num_env_steps,
            )
            value.add(request.index, played.score, cut)
            if cut is not None:
                self._ask_again()  # a comparison that confirms needs it played on

    def _ask_again(self) -> None:
        for trial in self.trials:
            trial.last_wanted = None

    def _take_rollout(self, request: SampleRequest, episode: Episode) -> None:
        self.counts += cost([episode])
        trial = next(t for t in self.trials if t.explored.fork is request.request.start)
        played = episode.trajectory
        if played.status != "error":
            trial.rollout = played
            trial.rollout_asked = not (trial.confirming and self._is_cut(played))
            played_on = request.request.max_agent_turns is None
            self.counts += Counts(num_cut=int(self._is_cut(played)), num_played_on=int(played_on))
            self._ask_again()
        elif trial.rollout_attempts < self.settings.max_retries:
            trial.rollout_attempts += 1
            trial.rollout_asked = False
            trial.rollout = None  # another seed: what was played before does not lead on
        else:
            trial.needs_rollout = False
            trial.verdict = self._verdict(trial, "undecided", note=f"broke: {played.error}")

    # -- deciding --------------------------------------------------------------------------------------------

    def _settle(self, trial: StepTrial) -> None:
        if trial.verdict is not None:
            return
        explored, s = trial.explored, self.settings
        if not trial.asked_world:
            trial.asked_world, trial.fatal = True, self.case.fatal_by_world(explored)
        if trial.fatal:
            trial.verdict = self._verdict(trial, "fatal")
            return
        if self.reward_settings.same_state == "tie" and not explored.over and not explored.same_action:
            before = self.exploration.forks[explored.step].state_key
            if before is not None and before == explored.fork.state_key:
                trial.verdict = self._judge(trial, Decision(verdict="tie", expert=None, agent=None))
                return
        if trial.needs_rollout:
            if not self._rollout_known(trial):
                return
            self._count_rollout(trial)
            assert trial.rollout is not None
            if s.require_failure and trial.rollout.won and not s.value_every_step:
                trial.verdict = self._verdict(trial, "kept", note=WON_ANYWAY)
                return
        decision = self.rewards.decide(trial.comparison)
        if decision is None:
            return
        trial.decision = decision
        if explored.same_action:
            trial.verdict = self._verdict(trial, "same_action")
        elif s.require_failure and trial.rollout is not None and trial.rollout.won:
            trial.verdict = self._verdict(trial, "kept", note=WON_ANYWAY)
        elif self._rests_on_cuts(trial, decision):
            self._confirm(trial)
        else:
            trial.verdict = self._judge(trial, decision)

    def _rests_on_cuts(self, trial: StepTrial, decision: Decision) -> bool:
        """Whether this would be a deviation, and the agent's outcomes or rollout after it were cut."""
        if trial.confirming or self.reward_settings.cut != "play_on":
            return False
        cut = decision.agent is not None and decision.agent.num_cut > 0
        cut = cut or (trial.rollout is not None and self._is_cut(trial.rollout))
        return cut and self._rule(decision)[0] == "deviated"

    def _confirm(self, trial: StepTrial) -> None:
        """Play on what was cut, and decide again by the outcomes that it then has."""
        trial.confirming, trial.rollout_asked, trial.decision = True, False, None
        trial.last_wanted = None
        c = trial.comparison
        trial.comparison = Comparison(step=c.step, expert=c.expert, agent=c.agent.played_out, token=c.token)
        self._settle(trial)

    def _count_rollout(self, trial: StepTrial) -> None:
        """Take the greedy rollout for the first outcome after its action, where the settings allow it."""
        value, rollout = trial.agent, trial.rollout
        if not self.reward_settings.count_greedy_rollout or rollout is None or trial.explored.over:
            return
        if value.exact is None and (id(value), 0) not in self._asked and not value.has(0):
            self._asked.add((id(value), 0))
            cut = rollout.steps[len(trial.explored.trajectory) :] if self._is_cut(rollout) else None
            value.add(0, rollout.score, cut)
        if trial.confirming and not self._is_cut(rollout):
            self._asked.add((id(value.played_out), 0))
            value.played_out.add(0, rollout.score)

    def _rule(self, decision: Decision) -> tuple[str, str]:
        """The verdict that the settings make of a decision, and a note where the values alone did not decide."""
        verdict, note = str(decision.verdict), ""
        if verdict == "undecided" and self.settings.undecided_rule == "mean" and decision.expert and decision.agent:
            gap = decision.agent.mean - decision.expert.mean - self.settings.delta
            verdict = "tie" if abs(gap) < 1e-9 else "deviated" if gap < 0 else "kept"
            note = "undecided, judged by the means"
        if verdict == "tie" and self.settings.tie_rule == "deviated":
            verdict, note = "deviated", "a tie"
        return verdict, note

    def _judge(self, trial: StepTrial, decision: Decision) -> StepVerdict:
        verdict, note = self._rule(decision)
        tied = verdict == "tie" or note == "a tie"
        self.counts += Counts(
            num_undecided=int(decision.verdict == "undecided"),
            num_ties=int(tied),
            num_ties_deviated=int(note == "a tie"),
        )
        if verdict == "deviated" and decision.expert is None and not note:
            note = "the expert's state was not sampled"
        if verdict == "deviated" and not note and trial.confirming:
            note = CONFIRMED
        if verdict == "deviated" and self.settings.detect_fatal and self._all_lost(decision):
            trial.fatal, verdict = "lost", "fatal"
        return self._verdict(trial, verdict, note=note)

    @staticmethod
    def _all_lost(decision: Decision) -> bool:
        expert, agent = decision.expert, decision.agent
        if expert is None or agent is None or agent.num_cut or len(agent.outcomes) < _LOST_SAMPLES:
            return False
        return max(agent.outcomes) == 0 and expert.mean >= 0.5

    def _verdict(self, trial: StepTrial, verdict: str, note: str = "") -> StepVerdict:
        decision = trial.decision
        return self.case.verdict(
            trial.explored,
            verdict,
            expert=decision.expert if decision else None,
            agent=decision.agent if decision else None,
            rollout=trial.rollout,
            fatal=trial.fatal,
            note=note,
        )

    # -- the result ------------------------------------------------------------------------------------------

    def detection(self, *, stop_at_first: bool) -> Detection:
        """What was found; with ``stop_at_first`` only the first deviation counts."""
        known = {t.explored.step: t for t in self.trials if t.verdict is not None}
        verdicts: list[StepVerdict] = []
        found: list[StepTrial] = []
        for explored in self.exploration.steps:
            trial = known.get(explored.step)
            if trial is None and not explored.same_action:
                break  # after the first deviation, not looked at
            verdict = self.case.verdict(explored, "same_action") if trial is None else trial.verdict
            assert verdict is not None
            verdicts.append(verdict)
            if trial is not None and trial.deviates:
                found.append(trial)
                if stop_at_first and not self.settings.value_every_step:
                    break
        if stop_at_first:
            found = found[:1]
        deviations = tuple(self.case.deviation(t.explored, self._failure(t), t.fatal) for t in found)
        rollouts = {
            t.explored.step: t.rollout
            for t in self.trials
            if t.needs_rollout and t.rollout is not None and not self._is_cut(t.rollout)
        }
        timeline = tuple(verdicts)
        better = self._better([v.step for v in timeline])
        return Detection(
            verdicts=timeline,
            deviations=deviations,
            rollouts=rollouts,
            expert_better=better,
            counts=self.counts + count_verdicts(timeline),
        )

    def _better(self, steps: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(set(self.expert_better) & set(steps)))

    def _failure(self, trial: StepTrial) -> Trajectory | None:
        """The agent's own failed trajectory after a deviation."""
        if trial.rollout is not None and not trial.rollout.won:
            return trial.rollout
        return trial.explored.trajectory if trial.fatal else None
