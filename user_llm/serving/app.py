"""The routes of a server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from user_llm.errors import UserError
from user_llm.serving import page, requests
from user_llm.serving.guard import Guarded, Logged, refusal
from user_llm.serving.metrics import MEDIA_TYPE as METRICS_TYPE
from user_llm.serving.problems import MEDIA_TYPE, Refused
from user_llm.serving.service import READY, Note, Service
from user_llm.store.engine import StoreError

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What is wrong (RFC 9457).",
        "content": {MEDIA_TYPE: {"schema": requests.Problem.model_json_schema()}},
    }
}


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """The app of a service, which begins to warm up with it and ends with it.

    Args:
      service: what answers.
      token: that requests must bear; None: none.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        yield
        await asyncio.to_thread(service.stop)

    # Swagger's page loads scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(
        title="User-LLM",
        version="1",  # of the routes
        description="What a finished run answers about users.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=_PROBLEMS,
    )
    app.add_middleware(Guarded, settings=service.settings, token=token, turn_away=service.turn_away)
    app.add_middleware(Logged, metrics=service.metrics)
    _add_problems(app, service)
    _add_questions(app, service)
    _add_changes(app, service)

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page.TEXT, media_type="text/html; charset=utf-8", headers=page.HEADERS)

    @app.get("/healthz")
    async def healthz() -> requests.Status:
        """Whether the process lives."""
        return requests.Status(status="ok")

    @app.get("/readyz")
    async def readyz() -> requests.Status:
        """Whether requests should be sent here."""
        if service.state != READY:
            raise Refused(503, f"the server is {service.state}.", service.settings.retry_after)
        return requests.Status(status="ok")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": METRICS_TYPE})

    return app


def _noting(request: Request) -> Note:
    """Keeps for the log how many were answered at once."""
    return lambda users: setattr(request.state, "batch", users)


Noting = Annotated[Note, Depends(_noting)]


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.post("/recommend")
    async def recommend(asked: requests.Recommend, note: Noting) -> requests.Recommended:
        """The likeliest next items of a user."""
        return await service.recommend(asked, note)

    @app.post("/answer")
    async def answer(asked: requests.Question, note: Noting) -> requests.Answers:
        """The likeliest answers to a task's question about a user."""
        return await service.answer(asked, note)

    @app.post("/generate")
    async def generate(asked: requests.Generate, note: Noting) -> requests.Generated:
        """The text that continues a prompt, by a language model that reads the user."""
        return await service.generate(asked, note)

    @app.get("/items")
    async def items(
        query: Annotated[str, Query(max_length=200)] = "", limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> requests.FoundItems:
        """Items by their titles."""
        return await service.find(query, limit)

    @app.get("/info")
    async def info() -> requests.Info:
        """What is served."""
        return service.info()

    @app.get("/map")
    async def points() -> requests.Points:
        """The items as points, by what the encoder has learnt of them."""
        return await service.points()

    @app.post("/map")
    async def place(asked: requests.Place) -> requests.Point:
        """Where a user stands among these points."""
        return await service.place(asked)


def _add_changes(app: FastAPI, service: Service) -> None:
    @app.post("/events")
    async def append(asked: requests.Append, note: Noting) -> requests.Appended:
        """Adds events to a user who is kept, or to a new one."""
        return await service.append(asked, note)

    @app.get("/users/{user:path}")
    async def user(user: requests.UserName) -> requests.KeptUser:
        """A user's latest items."""
        return await service.user(user)

    @app.delete("/users/{user:path}", status_code=204)
    async def delete(user: requests.UserName) -> None:
        """Forgets a user."""
        await service.delete(user)

    @app.put("/items")
    async def add(asked: requests.AddItems) -> requests.ChangedItems:
        """Lets further items be answered, or some that were removed."""
        return await service.add_items(asked)

    @app.post("/model", status_code=202)
    async def change_model(asked: requests.ChangeModel) -> requests.ChangingModel:
        """Lets another finished run answer, as soon as it is warm; until then the one before does."""
        return await service.change_model(asked)

    @app.delete("/items")
    async def remove(asked: requests.RemoveItems) -> requests.ChangedItems:
        """Lets items be answered no more."""
        return await service.remove_items(asked)


def _add_problems(app: FastAPI, service: Service) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        del request
        return refusal(error)

    @app.exception_handler(StoreError)
    async def unkept(request: Request, error: StoreError) -> Response:
        del request, error  # which says where the store is
        sentence = "the store of users fails: nobody knows whether this was kept."
        return refusal(Refused(503, sentence, service.settings.retry_after))

    @app.exception_handler(UserError)
    async def wrong(request: Request, error: UserError) -> Response:
        del request
        return refusal(Refused(422, service.served.told(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        del request
        found = error.errors()
        status = 400 if any(one["type"] == "json_invalid" for one in found) else 422
        # What was sent is not sent back.
        return refusal(Refused(status, "; ".join(_sentence(one) for one in found[:5])))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        del request
        return refusal(Refused(error.status_code, str(error.detail)))


def _sentence(error: Any) -> str:
    if error["type"] == "json_invalid":
        return f"the body is no JSON: {error['ctx']['error']} at character {error['loc'][-1]}"
    where = ".".join(map(str, error["loc"][1:]))
    return f"{where}: {error['msg']}" if where else error["msg"]
