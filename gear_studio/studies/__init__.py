"""Studies: named sets of Runs over arms and seeds, each answering one question with a table and a figure.

A study is data: arms, measures, and what the paper says of the same. An arm is a chain of trainings: the
warm-up, a joint stage on it, and a fresh generator on the frozen result. Each link of a chain, with a world
and a seed, makes one `Training`. A new study is one entry in catalogue.py.

    catalogue.py   the questions, as data
    world.py       what all Runs of a study are trained on
    chains.py      the trainings behind every arm and seed, as jobs
    queued.py      a study asked for: its command line, and its job in a queue
    measures.py    the numbers that tables have
    tables.py      finished Runs -> table, summary, figure
    shipped.py     what ships, and how to find a study's Runs again
    reproduce.py   the shipped models as jobs
    report.py      the tables of the shipped models, printed

    OUT/runs/     the Runs of all studies, named by the settings that make them: one training serves every
                  study that needs it, and a finished one is not done again. A folder with another config is
                  refused.
    OUT/logs/     what each training and evaluation printed
    OUT/NAME/     table.csv (one row an arm and seed), summary.md (over seeds), figure.png, record.json
                  (source, recipe, budget, seeds)

What ships lies in `gear_studio/zoo/studies/`, laid out as OUT is; Runs without weights share one file a study
(`run_files`). `ship_study` puts it there, `shipped_runs` reads it.

Settings are chosen on seeds 100 and above, and what is reported is of seeds 0 to 2: a choice made on the
seeds that are reported would flatter the arm it was made for.

A `World` says what all Runs of a study are trained on: the embedded pictures with the small recipe, other
pictures, or a recipe of the paper. In the embedded world every Run is measured in the features of the tiny
teacher, whoever aligned it; elsewhere in those of its own teacher. The curves of FD against steps come from
`training/sampled_distance.py`, about eight points a training; the table's FD comes from `evaluate`, with more
samples. All arms of a study get the same number of samples.

A study trains each Run in one process. It takes Runs that several processes made (`accelerate launch -m
gear_studio train ...`) as they are, where their names and settings are those that `gear-studio study NAME
--commands` prints.
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
    study_of,
    sweep,
)
from gear_studio.studies.chains import (
    FD_SAMPLES,
    SEEDS,
    Link,
    chain_of,
    fit_to_world,
    study_jobs,
)
from gear_studio.studies.measures import (
    CURVES,
    LIKENESS,
    MEASURES,
    Measure,
    final_value,
    from_evaluation,
    index_entropy,
    likeness_at,
)
from gear_studio.studies.queued import AskedStudy, folder_of, study_folders
from gear_studio.studies.shipped import (
    SHIPPED,
    core_seconds,
    find_runs,
    load_study,
    record_of_shipped,
    ship_study,
    shipped_runs,
    stage_core_seconds,
)
from gear_studio.studies.tables import (
    compare_arms,
    describe_record,
    describe_sizes,
    format_over_seeds,
    make_record,
    runs_by_arm,
    speed_up_table,
    speed_ups,
    summarize,
    table_rows,
    tokenizer_changes,
    write_study,
)
from gear_studio.studies.world import (
    World,
)

__all__ = [
    "Arm",
    "AskedStudy",
    "BASELINE",
    "CAPTIONS",
    "CONTINUED",
    "CURVES",
    "FD_SAMPLES",
    "GEAR",
    "GENERATED",
    "LIKENESS",
    "Link",
    "MEASURES",
    "Measure",
    "SEEDS",
    "SHIPPED",
    "STUDIES",
    "Study",
    "TEACHERS",
    "World",
    "chain_of",
    "compare_arms",
    "core_seconds",
    "describe_record",
    "describe_sizes",
    "final_value",
    "find_runs",
    "fit_to_world",
    "folder_of",
    "format_over_seeds",
    "from_evaluation",
    "index_entropy",
    "likeness_at",
    "load_study",
    "make_record",
    "record_of_shipped",
    "runs_by_arm",
    "ship_study",
    "shipped_runs",
    "speed_up_table",
    "speed_ups",
    "stage_core_seconds",
    "study_folders",
    "study_jobs",
    "study_of",
    "summarize",
    "sweep",
    "table_rows",
    "tokenizer_changes",
    "write_study",
]
