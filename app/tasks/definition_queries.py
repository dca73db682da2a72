"""What pages of definitions show beside the tasks themselves: their newest runs, templates to choose from."""

from collections.abc import Iterator, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.kernel.paging import Page
from app.tasks.models import Task, TaskRun, TaskTemplate
from app.tasks.queries import run_status, tasks, templates
from app.tasks.schemas import TaskQuery, TemplateQuery

CHUNK = 100


def exported_tasks(session: Session, query: TaskQuery) -> Iterator[Task]:
    """Everything that the filters leave, in the list's order."""
    number, found = 0, Page[Task]([], CHUNK, 1, CHUNK, "")
    while number * CHUNK < found.total:
        number += 1
        found = tasks(session, query.model_copy(update={"page": number, "page_size": CHUNK}))
        yield from found.items


def exported_templates(session: Session, query: TemplateQuery) -> Iterator[TaskTemplate]:
    number, found = 0, Page[TaskTemplate]([], CHUNK, 1, CHUNK, "")
    while number * CHUNK < found.total:
        number += 1
        found = templates(session, query.model_copy(update={"page": number, "page_size": CHUNK}))
        yield from found.items


def newest_runs(session: Session, task_ids: Sequence[int]) -> dict[int, tuple[TaskRun, str]]:
    """Task → its newest run with its status."""
    newest = select(func.max(TaskRun.id)).where(TaskRun.task_id.in_(task_ids)).group_by(TaskRun.task_id)
    found = session.scalars(select(TaskRun).where(TaskRun.id.in_(newest)))
    return {run.task_id: (run, run_status(run.fanout)) for run in found if run.task_id is not None}


def template_choices(session: Session) -> list[tuple[int, str]]:
    rows = session.execute(select(TaskTemplate.id, TaskTemplate.name).order_by(TaskTemplate.name))
    return [(id_, name) for id_, name in rows]


def templates_by_name(session: Session, names: Sequence[str]) -> dict[str, int]:
    """Which of these names a template has already."""
    found = select(TaskTemplate.name, TaskTemplate.id).where(TaskTemplate.name.in_(names))
    return dict(session.execute(found).all())


def tasks_made_from(session: Session, template_id: int) -> int:
    return session.scalar(select(func.count()).where(Task.template_id == template_id)) or 0
