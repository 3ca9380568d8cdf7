"""Trainings for a given time, one wave after the other: each gets its share of what is left when it begins."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autoplan import allocation, results
from autoplan.allocation import Division, Pace, Training
from autoplan.backends import Outcome
from autoplan.errors import TrainingError
from autoplan.facts import ALL, Plan, from_dict, to_dict
from autoplan.jobs import Job, caching_jobs
from autoplan.ledger import Ledger
from autoplan.tables import duration

DIVISION, PLAN, SLOWER, TRAININGS = "division", "plan", "slower than expected", "trainings"
"""What a ledger keeps: which trainings there are, by which plan, how many times as long as expected the starts and the
validation of a configuration took, and what each training has got."""
SLOWEST = 10.0
"""More than so many times as long as expected, and the machine stood still. Our choice."""
Run = Callable[[Sequence[Job]], Mapping[Job, Outcome]]
"""Runs jobs to their end."""


@dataclass(frozen=True)
class Share:
    """What a training has got: seconds, and iterations of an epoch. No seconds: there was no time for it."""

    seconds: int
    epoch_length: int


class Timed:
    """Trainings that share the time of a ledger.

    Args:
        ledger: its decisions hold; what is not decided yet is.
        plan: that they are trainings of.
        setting: what the time is for.
        measure: what they take here; asked once.

    Raises:
        TrainingError: the ledger is damaged, or its decisions are about another plan.
    """

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        setting: allocation.Setting,
        measure: Callable[[], Sequence[Pace]],
    ) -> None:
        self.ledger, self.setting = ledger, setting
        if DIVISION not in ledger.decisions:
            ledger.decide(DIVISION, to_dict(allocation.divide(ledger.left, measure(), setting)))
            ledger.decide(PLAN, _key(plan))
        if ledger.decisions.get(PLAN, _key(plan)) != _key(plan):
            raise TrainingError(f"{ledger.path}: the time was divided for another plan. Remove it to divide it anew.")
        try:
            self.division: Division = from_dict(Division, ledger.decisions[DIVISION])
            self.shares, self.paces  # noqa: B018 (they can be read)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise TrainingError(f"{ledger.path} is damaged. Remove it to divide the time anew.") from None

    @property
    def paces(self) -> dict[str, Pace]:
        """What each configuration takes, as far as is known now."""
        slower = self.ledger.decisions.get(SLOWER, {})
        found = {p.configuration: (p, slower.get(p.configuration, 1.0)) for p in self.division.paces}
        return {
            name: replace(p, image_seconds=factor * p.image_seconds, start_seconds=factor * p.start_seconds)
            for name, (p, factor) in found.items()
        }

    @property
    def shares(self) -> dict[Training, Share]:
        """What was decided so far."""
        kept = self.ledger.decisions.get(TRAININGS, {})
        by_name = {_name(t): t for t in self.division.trainings}
        return {by_name[name]: from_dict(Share, share) for name, share in kept.items()}

    def report(self) -> list[str]:
        """How the time is divided, in words."""
        missing = [t for t in self.division.trainings if t not in self.shares]
        if not missing:
            left, seconds = duration(max(0.0, self.ledger.left)), duration(self.ledger.seconds)
            return [f"Time: {left} of {seconds} left. All trainings have had theirs."]
        given = allocation.share(self.ledger.left, missing, self.division.trainings, self.paces, self.setting)
        return allocation.report(self.ledger.left, self.division, missing, self.paces, self.setting, given)

    def run(self, jobs: Mapping[Training, Job], run: Run) -> dict[Job, Outcome]:
        """Train. The caches are filled first, so that this is not taken from the first training.

        Args:
            jobs: of each training, without its share.
            run: runs jobs that may run at a time.

        Returns:
            The outcome of each job; nothing of trainings that there was no time for.
        """
        outcomes: dict[Job, Outcome] = {}
        trainings = self.division.trainings
        for t in trainings:
            if t not in self.shares and _has_begun(jobs[t]):
                raise TrainingError(
                    f"{jobs[t].name} was begun with another recipe, or for another time. Go on with that one, or "
                    f"remove {jobs[t].folder} to start anew."
                )
        if TRAININGS not in self.ledger.decisions:
            fillers = caching_jobs([jobs[t] for t in trainings], 1)
            run(list(dict.fromkeys(filler for some in fillers.values() for filler in some)))
        for start in range(0, len(trainings), self.setting.places):
            wave = trainings[start : start + self.setting.places]
            undecided = [t for t in wave if self._is_open(t, jobs[t])]
            if undecided:
                self._decide(undecided, [t for t in trainings[start:] if self._is_open(t, jobs[t])])
            timed = {t: self.job(jobs[t], t) for t in wave if self.shares[t].seconds}
            before = self.ledger.gone
            ended = run(list(timed.values()))
            outcomes |= ended
            if undecided == list(wave):
                done = {t: job for t, job in timed.items() if job in ended and ended[job].state == "done"}
                self._learn(done, self.ledger.gone - before)
        return outcomes

    def _is_open(self, training: Training, job: Job) -> bool:
        """Whether it has no share yet, or had one that it did not use, as its start failed, and for which there is no
        time any more."""
        share = self.shares.get(training)
        return share is None or (share.seconds > self.ledger.left and not _has_begun(job))

    def _decide(self, wave: Sequence[Training], missing: Sequence[Training]) -> None:
        """Give the trainings of a wave their share of what is left."""
        given = allocation.share(self.ledger.left, missing, self.division.trainings, self.paces, self.setting)
        kept = dict(self.ledger.decisions.get(TRAININGS, {}))
        for t in wave:
            pace = self.paces[t.configuration]
            # The first one is made in any case: something has to be there in the end.
            is_worth = not kept or allocation.iterations(given, pace) >= allocation.LEAST
            seconds = max(round(given), 1) if is_worth else 0
            kept[_name(t)] = to_dict(Share(seconds, allocation.epoch_length(given, pace)))
        self.ledger.decide(TRAININGS, kept)

    def job(self, job: Job, training: Training) -> Job:
        """The job of a training, with its share."""
        share = self.shares[training]
        features = {"features": json.dumps(self.paces[training.configuration].features, separators=(",", ":"))}
        time = {"budget_seconds": str(share.seconds), "epoch_length": str(share.epoch_length)}
        given = {**features, **dict(job.settings), **time}
        return replace(job, settings=tuple(sorted(given.items())))

    def _learn(self, done: Mapping[Training, Job], seconds: float) -> None:
        """Compare what the trainings of a wave, which ran without a pause, took besides their own time with what was
        expected."""
        slower = dict(self.ledger.decisions.get(SLOWER, {}))
        expected = {pace.configuration: pace for pace in self.division.paces}
        for t, job in done.items():
            if t.fold != ALL:
                trained = results.trained_seconds(job.folder) or self.shares[t].seconds
                took = max(0.0, seconds - trained)
                usual = allocation.besides(t, expected[t.configuration], self.setting)
                slower[t.configuration] = min(SLOWEST, took / usual)
        self.ledger.decide(SLOWER, slower)


def jobs_by_training(jobs: Iterable[Job]) -> dict[Training, Job]:
    """Jobs by the configuration and fold that they train."""
    return {Training(job.configuration, job.fold): job for job in jobs if job.fold is not None}


def _has_begun(job: Job) -> bool:
    """Whether anything of a training is there, by whatever recipe."""
    return (job.folder / "last.pt").is_file() or results.training(job.folder) is not None


def _key(plan: Plan) -> str:
    """Tells the plan of some trainings from others."""
    return hashlib.sha256(json.dumps(to_dict((plan.configurations, plan.folds))).encode()).hexdigest()[:16]


def _name(training: Training) -> str:
    return f"{training.configuration} fold {training.fold}"
