"""Results on disk; the only reader and writer of results.

    <root>/<study>/study.json              what was asked for: the task, the engine, the seed, versions
    <root>/<study>/progress.json           how the study stands, while it runs and at its end
    <root>/<study>/trials/00007.parquet    one row: configuration, score, failure
    <root>/<study>/steps/00007.parquet     a row for each load level that was finished
    <root>/<study>/requests/00007.parquet  a row for each measured request

`schema` has the columns, `store` a study's files, `places` the folders and URIs that studies are kept in.
"""

from tuner.results.places import (
    STUDY_NAME,
    data_home,
    default_root,
    fixed_root,
    new_study_name,
    require_place,
    studies,
)
from tuner.results.schema import LATENCIES, SCHEMA_VERSION, STATISTICS, TABLES
from tuner.results.store import ResultStore, StudyResults

__all__ = [
    "LATENCIES",
    "SCHEMA_VERSION",
    "STATISTICS",
    "STUDY_NAME",
    "TABLES",
    "ResultStore",
    "StudyResults",
    "data_home",
    "default_root",
    "fixed_root",
    "new_study_name",
    "require_place",
    "studies",
]
