"""Trainings for a given time, one wave after the other: each gets its share of what is left when it begins."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autoplan.base.codec import from_dict, to_dict
from autoplan.base.errors import TrainingError
from autoplan.base.tables import duration
from autoplan.budget import division as allocation
from autoplan.budget.division import Division, Training
from autoplan.budget.ledger import Ledger
from autoplan.cost.pace import Pace
from autoplan.planning.values import CASCADE, LOWRES, Plan
from autoplan.training import results
from autoplan.training.backends import Outcome
from autoplan.training.jobs import Job, caching_jobs
from autoplan.training.standing import is_done, is_trained

PACES, DIVISION, PLAN, SLOWER, TRAININGS = "paces", "division", "plan", "slower than expected", "trainings"
"""What a ledger keeps: what networks take here, which trainings there are, by which plan, how many times as long as
expected the starts and the validation of a configuration took, and what each training has got."""
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
        jobs: of each training that there may be, without its share.
        measure: what they take here; asked once.

    Raises:
        TrainingError: the ledger is damaged, or its decisions are about another plan.
    """

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        setting: allocation.Setting,
        jobs: Mapping[Training, Job],
        measure: Callable[[], Sequence[Pace]],
    ) -> None:
        self.ledger, self.setting, self.jobs = ledger, setting, jobs
        if DIVISION not in ledger.decisions:
            measured = tuple(measure())
            division = allocation.divide(ledger.left, measured, setting)
            ledger.decide(PACES, to_dict(measured))
            ledger.decide(DIVISION, to_dict(division))
            ledger.decide(PLAN, _key(plan))
        if ledger.decisions.get(PLAN, _key(plan)) != _key(plan):
            raise TrainingError(f"{ledger.path}: the time was divided for another plan. Remove it to divide it anew.")
        try:
            self.measured: tuple[Pace, ...] = from_dict(tuple[Pace, ...], ledger.decisions[PACES])
            self.division: Division = from_dict(Division, ledger.decisions[DIVISION])
            self.report()  # all that it keeps can be read
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise TrainingError(f"{ledger.path} is damaged. Remove it to divide the time anew.") from None

    @property
    def paces(self) -> dict[str, Pace]:
        """What each configuration takes, as far as is known now."""
        slower = self.ledger.decisions.get(SLOWER, {})
        found = {p.configuration: (p, slower.get(p.configuration, 1.0)) for p in self.division.paces}
        return {
            name: replace(
                p,
                image_seconds=factor * p.image_seconds,
                start_seconds=factor * p.start_seconds,
                case_seconds=factor * p.case_seconds,
            )
            for name, (p, factor) in found.items()
        }

    @property
    def shares(self) -> dict[Training, Share]:
        """What was decided so far."""
        kept = self.ledger.decisions.get(TRAININGS, {})
        by_name = {_name(t): t for t in self.division.trainings}
        return {by_name[name]: from_dict(Share, share) for name, share in kept.items()}

    @property
    def done(self) -> list[Training]:
        """What is trained to its end, and predicted."""
        return [t for t, share in self.shares.items() if share.seconds and is_done(self.job(t))]

    @property
    def left_out(self) -> list[Training]:
        """What has got no time."""
        shares = self.shares
        return [t for t in self.division.trainings if t not in shares or not shares[t].seconds]

    def report(self) -> list[str]:
        """How the time is divided, in words."""
        shares, left = self.shares, self.ledger.left
        missing = [t for t in self.division.trainings if t not in shares]
        going = self._unfinished(self.division.trainings)
        if missing:
            given = self._share(missing, going)
            return allocation.report(left, self.division, missing, self.paces, self.setting, given)
        then = "Every training has received its time." if not going else f"What goes on: {listed(going)}."
        return [f"Time: {duration(max(0.0, left))} of {duration(self.ledger.seconds)} left. {then}"]

    def prepare(self, run: Run) -> bool:
        """Fill the caches, so that this is not taken from the first training, and divide what is left then.

        Args:
            run: see `run`.

        Returns:
            Whether the time is divided in another way now.

        Raises:
            AutoplanError: a training was begun otherwise, or what is left is too short.
        """
        for t in self.division.trainings:
            if t not in self.shares and _has_begun(self.jobs[t]):
                raise TrainingError(
                    f"{self.jobs[t].name} was started with another recipe, or for another time. Continue with that "
                    f"one, or remove {self.jobs[t].folder} to start anew."
                )
        if self.shares:
            return False
        fillers = caching_jobs([self.jobs[t] for t in self.division.trainings], 1)
        run(list(dict.fromkeys(filler for some in fillers.values() for filler in some)))
        division = allocation.divide(self.ledger.left, self.measured, self.setting)
        if division == self.division:
            return False
        self.division = division
        self.ledger.decide(DIVISION, to_dict(division))
        return True

    def run(self, run: Run) -> dict[Job, Outcome]:
        """Train.

        Args:
            run: runs jobs that may run at a time.

        Returns:
            The outcome of each job; nothing of trainings that there was no time for.
        """
        outcomes: dict[Job, Outcome] = {}
        waves = allocation.waves(self.division.trainings, self.setting.places)
        for number, wave in enumerate(waves):
            rest = [t for some in waves[number:] for t in some]
            undecided = [t for t in wave if self._is_open(t)]
            begun = self._unfinished([t for t in rest if t not in undecided])
            if undecided:
                self._decide(undecided, [t for t in rest if self._is_open(t)], begun)
            part = self._part(begun)
            shares = self.shares
            timed = {t: self.job(t, part if t in begun else 1.0) for t in wave if t in shares and shares[t].seconds}
            before = self.ledger.gone
            ended = run(list(timed.values()))
            outcomes |= ended
            if undecided == list(wave):
                done = [t for t, job in timed.items() if job in ended and ended[job].state == "done"]
                self._learn(done, self.ledger.gone - before)
        return outcomes

    def _is_open(self, training: Training) -> bool:
        """Whether it has no share yet, or had one that it did not use, as its start failed, and for which there is no
        time any more."""
        share = self.shares.get(training)
        return share is None or (share.seconds > self.ledger.left and not _has_begun(self.jobs[training]))

    def _unfinished(self, trainings: Collection[Training]) -> list[Training]:
        """Those that have got their share, and are not done."""
        return [t for t, s in self.shares.items() if t in trainings and s.seconds and not is_done(self.job(t))]

    def _lacks(self, training: Training) -> float:
        """Seconds of its share that a training has not used."""
        job = self.job(training)
        used = results.trained_seconds(job.folder) or 0.0
        return 0.0 if is_trained(job) else max(0.0, self.shares[training].seconds - used)

    def _lacking(self, begun: Sequence[Training]) -> float:
        """Seconds of their shares that trainings have not used, one wave after the other."""
        return sum(max(map(self._lacks, wave)) for wave in allocation.waves(begun, self.setting.places))

    def _share(self, missing: Sequence[Training], begun: Sequence[Training]) -> float:
        """Seconds of each training that is still missing, when others go on with what they have got."""
        left = self.ledger.left - self._lacking(begun)
        return allocation.share(left, missing, self.division.trainings, self.paces, self.setting)

    def _part(self, begun: Sequence[Training]) -> float:
        """Part of what trainings lack that there is time for: less than all where it was lost by an interruption, or
        where fewer run at a time than before."""
        lacking, num_waves = self._lacking(begun), len(allocation.waves(begun, self.setting.places))
        there = allocation.share(self.ledger.left, begun, self.division.trainings, self.paces, self.setting)
        return min(1.0, max(0.0, num_waves * there) / lacking) if lacking else 1.0

    def _decide(self, wave: Sequence[Training], missing: Sequence[Training], begun: Sequence[Training]) -> None:
        """Give the trainings of a wave their share of what is left; not to the second stage of a cascade whose first is
        not done."""
        given = self._share(missing, begun)
        kept = dict(self.ledger.decisions.get(TRAININGS, {}))
        done = self.done
        lacks_lowres = any(t.configuration == LOWRES and t not in done for t in self.division.trainings)
        for t in wave:
            if t.configuration == CASCADE and lacks_lowres:
                continue
            pace = self.paces[t.configuration]
            # The first one is made in any case: something has to be there in the end.
            is_worth = not kept or allocation.iterations(given, pace) >= allocation.LEAST
            seconds = max(round(given), 1) if is_worth else 0
            kept[_name(t)] = to_dict(Share(seconds, allocation.epoch_length(given, pace)))
        self.ledger.decide(TRAININGS, kept)

    def job(self, training: Training, part: float = 1.0) -> Job:
        """The job of a training, with its share. `part`: of what it lacks that there is time for."""
        job, share = self.jobs[training], self.shares[training]
        features = {"features": json.dumps(self.paces[training.configuration].features, separators=(",", ":"))}
        given = {**features, "epoch_length": str(share.epoch_length), **dict(job.settings)}
        given["budget_seconds"] = str(share.seconds)
        if part < 1:
            given["budget_left"] = str(max(1, round(part * self._lacks(training))))
        return replace(job, settings=tuple(sorted(given.items())))

    def _learn(self, done: Sequence[Training], seconds: float) -> None:
        """Compare what the trainings of a wave, which ran without a pause, took besides their own time with what was
        expected: that of the training that should have ended last."""
        if not done:
            return
        expected = {pace.configuration: pace for pace in self.division.paces}
        took = {t: results.trained_seconds(self.jobs[t].folder) or self.shares[t].seconds for t in done}
        usual = {t: allocation.besides(t, expected[t.configuration], self.setting) for t in done}
        last = max(done, key=lambda t: took[t] + usual[t])
        slower = dict(self.ledger.decisions.get(SLOWER, {}))
        slower[last.configuration] = min(SLOWEST, max(0.0, seconds - took[last]) / usual[last])
        self.ledger.decide(SLOWER, slower)


def listed(trainings: Sequence[Training]) -> str:
    """Names of trainings, in words."""
    return ", ".join(map(_name, trainings))


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
