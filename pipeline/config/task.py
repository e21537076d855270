"""The section `task`: which task, and its own keys, checked by its `Options`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, create_model

from pipeline.config import extension
from pipeline.config.section import Section
from pipeline.tasks import TASKS
from pipeline.tasks import Task as Interface
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.data import Dataset


class Task(Section):
    name: str = Field(default="classification", description=f"{' | '.join(TASKS)} | {extension.FORMS}")

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any:
            """The keys of the task."""


@cache
def section_of(name: str) -> type[Task]:
    """The section with the keys of this task. Raises UserError where there is no such task."""
    options = extension.options_of(name, TASKS, "task.name")
    field: Any = (str, Field(default=name, description=Task.model_fields["name"].description))
    bases = (Task,) if options is Section else (options, Task)  # of one's own, and without any
    return cast(type[Task], create_model("Task", __base__=bases, __module__=__name__, name=field))


def task_section(**keys: Any) -> Any:
    """A checked section of these keys."""
    return section_of(keys.get("name", "classification")).model_validate(keys)


def distils(section: Task) -> bool:
    """Whether a network can learn this task from another's answers."""
    return section.name == "classification" or task_of(section).distance is not None


def task_of(section: Task | None = None, data: Dataset | None = None) -> Interface:
    """The task of a checked section, which loads what it works with; without a section, classification. With `data`, as
    a training on them needs it. Raises UserError."""
    section = section or task_section()
    task = extension.function_of(section.name, TASKS, "task.name")(section)
    if not isinstance(task, Interface):
        raise UserError(f"{section.name} answered {type(task).__name__}", "a pipeline.tasks.Task", "mend the function")
    return task if data is None or task.fitted is None else task.fitted(data)
