"""The configuration of faults that are planted on purpose, and what can be wrong with it; needs no torch."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from dlrm.errors import DlrmError
from dlrm.options import limit_faults, option
from dlrm.reshard.stages import Stage
from planner.text import did_you_mean

SLOW_LOOKUPS, SLOW_DEVICE, SLOW_LINK, HOG_CORE, HOT_TABLE, HOT_ROWS, CHECKPOINT_SPIKES, FAIL_RESHARD = KINDS = (
    "slow_lookups",
    "slow_device",
    "slow_link",
    "hog_core",
    "hot_table",
    "hot_rows",
    "checkpoint_spikes",
    "fail_reshard",
)
STAGES = tuple(stage.value for stage in Stage)


@dataclass
class InjectionConfig:
    """One fault, planted on purpose to see what it does and whether it is found.

    `percent`, `ms`, `period_steps`, `tables`, `shift` and `stage` mean something to the kinds that their texts name.
    """

    kind: str = option(
        "",
        "slow_lookups: lookup kernels take longer | slow_device: the dense part too | slow_link: what is sent comes "
        "later | hog_core: another process on the rank's core | hot_table: more ids | hot_rows: other ids | "
        "checkpoint_spikes: a long step now and then | fail_reshard: a migration fails",
        choices=KINDS,
    )
    ranks: list[int] | None = option(None, "ranks that have the fault; null: all", at_least=0)
    from_step: int = option(1, "first step with the fault", at_least=1)
    to_step: int | None = option(None, "last step with the fault; null: to the end", at_least=1)
    percent: float = option(
        20.0, "slow_lookups, slow_device: how much longer work takes; hot_table: how many ids more", at_least=0.0
    )
    ms: float = option(
        2.0, "slow_link: how much later what is sent comes; checkpoint_spikes: how much longer a step is", at_least=0.0
    )
    period_steps: int = option(50, "checkpoint_spikes: every step that this divides is long", at_least=1)
    tables: list[str] = option([], "hot_table, hot_rows: the tables; an empty list: all")
    shift: float = option(0.5, "hot_rows: ids move on by this share of the table's rows", at_least=0.0)
    stage: str = option(
        Stage.TRANSFER.value,
        "fail_reshard: before anything is done | amid the transfer | corrupt: a bit is changed on the way | before the "
        "commit",
        choices=STAGES,
    )

    def __str__(self) -> str:
        """What is planted where, for people."""
        where = "all ranks" if self.ranks is None else f"rank {' and '.join(map(str, self.ranks))}"
        which = ", ".join(self.tables) or "all tables"
        details = {
            SLOW_LOOKUPS: f"+{self.percent:g} %",
            SLOW_DEVICE: f"+{self.percent:g} %",
            SLOW_LINK: f"+{self.ms:g} ms",
            HOT_TABLE: f"+{self.percent:g} % ids of {which}",
            HOT_ROWS: f"{which} by {self.shift:g} of the rows",
            CHECKPOINT_SPIKES: f"+{self.ms:g} ms every {self.period_steps} steps",
            FAIL_RESHARD: f"({self.stage})",
        }
        return " ".join(filter(None, (self.kind, details.get(self.kind), f"on {where}")))


def injection_problems(
    configs: Sequence[InjectionConfig], tables: Collection[str] | None = None, world_size: int | None = None
) -> Iterator[str]:
    """What the limits of single keys cannot tell, one line a problem, which starts with the key as `inject[0].xyz`.

    Tables and ranks are judged where it is known which there are.
    """
    for index, config in enumerate(configs):
        key = f"inject[{index}]"
        if config.to_step is not None and config.to_step < config.from_step:
            yield f"{key}.to_step: {config.to_step} is before from_step, {config.from_step}"
        if config.ranks is not None and not config.ranks:
            yield f"{key}.ranks: an empty list is no rank; null means all"
        for rank in config.ranks or ():
            if world_size is not None and rank >= world_size:
                yield f"{key}.ranks: there is no rank {rank}; this job has {world_size}, from 0"
        for table in config.tables:
            if tables is not None and table not in tables:
                yield f"{key}.tables: there is no table {table!r}{did_you_mean(table, sorted(tables))}"


def check_injections(configs: Sequence[InjectionConfig], tables: Collection[str], world_size: int) -> None:
    """Raise where a fault cannot be planted into a job with these tables and so many ranks.

    Raises:
        DlrmError: `injection`, with one line for every problem.
    """
    limits = (fault for index, config in enumerate(configs) for fault in limit_faults(config, f"inject[{index}]."))
    problems = [*limits, *injection_problems(configs, tables, world_size)]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DlrmError(f"These faults cannot be planted:\n{lines}", "injection")
