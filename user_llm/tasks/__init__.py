"""The tasks by name: what an LLM can be asked about a user, and how well it answers."""

from user_llm.registry import Registry
from user_llm.tasks.base import Answer, Asker, Evaluation, Study, Task
from user_llm.tasks.favorite_category import FavoriteCategory
from user_llm.tasks.next_item import NextItem
from user_llm.tasks.review_generation import ReviewGeneration

TASKS: Registry[Task] = Registry()
for _task in (NextItem(), FavoriteCategory(), ReviewGeneration()):
    TASKS.register(_task)

__all__ = ["TASKS", "Answer", "Asker", "Evaluation", "Study", "Task"]
