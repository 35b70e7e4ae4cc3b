"""What is asked and answered, as JSON; the examples are those of the OpenAPI page."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_EVENTS = [{"item": "Toy Story (1995)", "rating": 5.0}, {"item": "Heat (1995)", "rating": 4.0}]


def _name(name: str) -> str:
    if "\0" in name:
        raise ValueError("a user's name holds no null character")
    return name


Title = Annotated[str, Field(min_length=1, max_length=4096)]
UserName = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(_name)]  # 480 bytes: a store has room


def _config(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"examples": [*examples]})


class Event(BaseModel):
    """What a user has done. A rating is needed where the run reads them, a time in seconds since 1970, too."""

    model_config = _config(_EVENTS[0])

    item: Title
    rating: float | None = None
    time: float | None = None

    def plain(self) -> dict[str, Any]:
        """As the library reads it."""
        return self.model_dump(exclude_none=True)


Events = Annotated[list[Event], Field(min_length=1, max_length=10_000)]


class Asked(BaseModel):
    """Who is asked about: a user who is kept, or somebody's events, oldest first."""

    user: UserName | None = None
    events: Events | None = None
    unknown: Literal["error", "skip"] = "error"
    now: float | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Asked":
        if (self.user is None) == (self.events is None):
            raise ValueError("name either a user who is kept, or give events")
        return self


class Recommend(Asked):
    """Asks for the next items, 10 where `k` is left out."""

    model_config = _config({"events": _EVENTS, "k": 5}, {"user": "42", "answers": "exact", "category": "Drama"})

    k: int | None = Field(None, ge=1)
    answers: Literal["beams", "exact", "fused", "encoder"] = "beams"
    exclude: list[Title] = []
    allow: list[Title] | None = None
    category: str | None = None


class RecommendedItem(BaseModel):
    """An item; `item` is the data's own id of it."""

    title: str
    item: str
    score: float


class Recommended(BaseModel):
    """The likeliest next items, best first, with log-probabilities."""

    model_config = _config(
        {
            "items": [{"title": "Se7en (1995)", "item": "47", "score": -3.2}],
            "answers": "beams",
            "items_version": 0,
            "model": "0f3a5c2b9d1e",
        }
    )

    items: list[RecommendedItem]
    answers: str
    items_version: int
    model: str


class Append(BaseModel):
    """Further events of a user, who may be new."""

    model_config = _config({"user": "42", "events": _EVENTS[:1]})

    user: UserName
    events: Events


class Appended(BaseModel):
    """How many events were added; they are kept when this is answered."""

    user: str
    events: int


class KeptUser(BaseModel):
    """The titles of a user's latest events, oldest first."""

    user: str
    items: list[str]


class Question(Asked):
    """Asks a task's question, for 5 answers where `k` is left out.

    `about` is the event that a review is to be written of.
    """

    model_config = _config({"events": _EVENTS, "task": "favorite_category", "k": 3})

    task: str | None = None
    k: int | None = Field(None, ge=1)
    about: Event | None = None


class AnswerText(BaseModel):
    """An answer, and its log-probability where the task has one."""

    text: str
    score: float | None


class Answers(BaseModel):
    """A task's answers, best first."""

    answers: list[AnswerText]
    task: str


class Generate(Asked):
    """Asks for the text that continues a prompt."""

    model_config = _config({"events": _EVENTS, "prompt": "The user's next", "max_new_tokens": 8})

    prompt: Annotated[str, Field(max_length=10_000)]
    max_new_tokens: int = Field(40, ge=1)


class Generated(BaseModel):
    """What continues the prompt."""

    text: str


class FoundItem(BaseModel):
    """An item; `item` is the data's own id of it."""

    title: str
    item: str


class FoundItems(BaseModel):
    """The first of `total` items that may be answered and whose titles hold what was searched for."""

    items: list[FoundItem]
    version: int
    total: int


class NewItem(BaseModel):
    """An item that came after the training."""

    model_config = _config({"title": "Dune: Part Two (2024)"})

    title: Title


class AddItems(BaseModel):
    """Items that may be answered from now on."""

    model_config = _config({"items": [{"title": "Dune: Part Two (2024)"}]})

    items: Annotated[list[NewItem], Field(min_length=1, max_length=1024)]


class RemoveItems(BaseModel):
    """Items that may be answered no more."""

    model_config = _config({"titles": ["Heat (1995)"]})

    titles: Annotated[list[Title], Field(min_length=1, max_length=1024)]


class ChangedItems(BaseModel):
    """What has changed of the items, and the version that is answered from now on."""

    version: int
    added: int
    removed: int


class ChangeModel(BaseModel):
    """Another finished run, in a folder beside that of the run that is served."""

    model_config = _config({"run": "ml_1m_second"})

    run: Annotated[str, Field(min_length=1, max_length=255)]


class ChangingModel(BaseModel):
    """The run that is being loaded."""

    run: str


class Info(BaseModel):
    """What is served.

    `reads_times` is "", "past" (events need a time) or "asked" (so does the question, `now`).
    """

    run: str
    model: str
    tasks: list[str]
    answers: list[str]
    ratings: list[float]
    reads_times: str
    categories: list[str]
    k: int
    history_length: int
    num_items: int
    store: bool
    items_version: int
    loading: str | None


class Points(BaseModel):
    """The items on a map, in the order of their ids."""

    points: list[tuple[float, float]]
    titles: list[str]
    categories: list[int]


class Place(Asked):
    """Asks where somebody stands on the map."""

    model_config = _config({"events": _EVENTS})


class Point(BaseModel):
    """A place on the map."""

    x: float
    y: float


class Status(BaseModel):
    """Whether the server lives, or is ready."""

    status: str


class Problem(BaseModel):
    """What is wrong with a request (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
