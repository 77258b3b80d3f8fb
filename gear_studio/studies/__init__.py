"""Studies: named sets of Runs over arms and seeds, each answering one question with a table and a figure.

A study is data: arms, measures, and what the paper says of the same. An arm is a chain of trainings: the
warm-up, a joint stage on it, and a fresh generator on the frozen result.

    catalogue.py   the questions, as data
    world.py       what all Runs of a study are trained on
    training.py    the chains of all seeds, as jobs
    measures.py    the numbers that tables have
    tables.py      finished Runs -> table, summary, figure
    shipped.py     what ships, and how to find a study's Runs again
    reproduce.py   the shipped models as jobs
    report.py      the README's tables, printed

    OUT/runs/     the Runs of all studies, named by what they were asked: one training serves every study that
                  asks for it, and a finished one is not done again. A folder with another config is refused.
    OUT/logs/     what each training and evaluation printed
    OUT/NAME/     table.csv (one row an arm and seed), summary.md (over seeds), figure.png, record.json (what
                  was asked: source, recipe, budget, seeds)

What ships lies in `gear_studio/zoo/studies/`, laid out as OUT is: `ship` puts it there, `shipped` reads it.

Settings are chosen on seeds 100 and above, and what is reported is of seeds 0 to 2: a choice made on the
seeds that are reported would flatter the arm it was made for.

What they are trained on is a `World`: the embedded one with the small recipe, or other pictures, or a recipe
of the paper. In the embedded one every Run is measured in the features of the tiny teacher, whoever aligned
it; elsewhere in those of its own. FD against steps is `training/fd.py`'s, about eight times a training; the
table's FD is `evaluate`'s, with more samples. All arms of a study get the same count.

A study trains one process a run. Runs that several processes made (`accelerate launch -m gear_studio train
...`), under the names and with the settings that `gear-studio study NAME --commands` prints, are taken as
they are.
"""

from gear_studio.studies.catalogue import (
    BASELINE,
    CAPTIONS,
    CONTINUED,
    GEAR,
    GENERATED,
    STUDIES,
    TEACHERS,
    Arm,
    Study,
    named,
    sweep,
)
from gear_studio.studies.measures import (
    CURVES,
    LIKENESS,
    MEASURES,
    Measure,
    evaluated,
    index_entropy,
    last,
    like,
)
from gear_studio.studies.shipped import SHIPPED, core_seconds, found, looked_at, ship, shipped, shipped_record
from gear_studio.studies.tables import (
    beside,
    by_arm,
    over_seeds,
    record,
    rows,
    speed_up_table,
    speed_ups,
    summary,
    tokenizer_changes,
    told,
    write,
)
from gear_studio.studies.training import FD_SAMPLES, SEEDS, Training, chain, fitted, jobs
from gear_studio.studies.world import World

__all__ = [
    "Arm",
    "BASELINE",
    "CAPTIONS",
    "CONTINUED",
    "CURVES",
    "FD_SAMPLES",
    "GEAR",
    "GENERATED",
    "LIKENESS",
    "MEASURES",
    "Measure",
    "SEEDS",
    "SHIPPED",
    "STUDIES",
    "Study",
    "TEACHERS",
    "Training",
    "World",
    "beside",
    "by_arm",
    "chain",
    "core_seconds",
    "evaluated",
    "fitted",
    "found",
    "index_entropy",
    "jobs",
    "last",
    "like",
    "looked_at",
    "named",
    "over_seeds",
    "record",
    "rows",
    "ship",
    "shipped",
    "shipped_record",
    "speed_up_table",
    "speed_ups",
    "summary",
    "sweep",
    "tokenizer_changes",
    "told",
    "write",
]
