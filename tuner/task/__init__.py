"""The task file: its keys (`model` and sections); how it is read (`file`), what is refused (`checks`)."""

from tuner.task.file import load_task, make_task, task_schema
from tuner.task.model import Task
from tuner.task.table import task_tables

__all__ = ["Task", "load_task", "make_task", "task_schema", "task_tables"]
