"""What clients may send: a closed set of fields, each with a range or a list of values.

There is no field for a path, an address or a command.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from amortized import __version__
from amortized.serve.problems import Problem
from amortized.untrusted import parse_json

CODE = f"{__version__}/1"  # the second number changes when the same request gives other files
MAX_PROMPT = 400  # characters
MAX_PIXELS = 2**18  # of a preview: views * size^2
MAX_SEED = 2**31 - 1
Format = Literal["glb", "ply", "obj", "stl", "3mf", "usdz", "mp4"]
# The files of an object: no other name is ever written or served.
MEDIA_TYPES = {
    "preview.png": "image/png",
    "object.glb": "model/gltf-binary",
    "object.ply": "application/octet-stream",
    "object.obj.zip": "application/zip",
    "object.stl": "model/stl",
    "object.3mf": "model/3mf",
    "object.usdz": "model/vnd.usdz+zip",
    "turntable.mp4": "video/mp4",
}
FILE_OF = {name.partition(".")[2].partition(".")[0]: name for name in MEDIA_TYPES}
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, unpaired surrogates, separators of lines


def clean_prompt(text: str) -> str:
    """A prompt in Unicode's NFC without spaces around it. Raises ValueError."""
    if len(text) > 10 * MAX_PROMPT:  # before normalizing: it may take long for a long text
        raise ValueError(f"has {len(text):,} characters, and at most {MAX_PROMPT} are allowed")
    text = unicodedata.normalize("NFC", text).strip()
    if not text:
        raise ValueError("is empty")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"has {len(text):,} characters, and at most {MAX_PROMPT} are allowed")
    if any(unicodedata.category(character) in UNPRINTABLE for character in text):
        raise ValueError("has control characters or ends of lines")
    return text


def check_pixels(views: int, size: int) -> None:
    """Raise ValueError for a preview that would be too large."""
    if views * size**2 > MAX_PIXELS:
        raise ValueError(f"views * size^2 is at most {MAX_PIXELS:,}")


Text = Annotated[str, AfterValidator(clean_prompt), Field(json_schema_extra={"maxLength": MAX_PROMPT})]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
ModelName = Annotated[str, Field(max_length=100)]


class Request(BaseModel):
    """Unknown fields, and values of another type, are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


R = TypeVar("R", bound=Request)


class Options(Request):
    """Which files are made of an object, and how."""

    model: ModelName | None = Field(default=None, description="name or digest of a model; default: the first")
    formats: list[Format] = Field(default=[], max_length=7, description="files besides the preview")
    faces: int = Field(default=20_000, ge=100, le=200_000, description="triangles of meshes")
    texture: Literal[0, 256, 512, 1024, 2048, 4096] = Field(
        default=1024, description="texels per side; 0: none"
    )
    resolution: Literal[64, 128, 256] = Field(default=256, description="cells across the object")
    preview: bool = Field(default=True, description="a picture with views side by side")
    views: Literal[1, 4, 8, 24] = 4
    size: Literal[64, 96, 128, 256, 512] = Field(128, description="pixels per side of a view")

    @model_validator(mode="after")
    def _check(self) -> Options:
        check_pixels(self.views, self.size)
        if not self.preview and not self.formats:
            raise ValueError("nothing is requested: give formats, or preview")
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that the files depend on, and no others: a part of the object's id."""
        formats = sorted(set(self.formats))
        settings: dict[str, Any] = {"formats": formats}
        if self.preview:
            settings |= {"views": self.views, "size": self.size}
        if set(formats) - {"mp4"}:
            settings |= {"faces": self.faces, "resolution": self.resolution}
        if set(formats) & {"glb", "obj", "usdz"}:
            settings["texture"] = self.texture
        return settings


class ObjectRequest(Options):
    """POST /v1/objects."""

    prompt: Text
    seed: Seed = 0
    n: int = Field(default=1, ge=1, le=8, description="variants, with the seeds from `seed` on")
    wait: float = Field(
        default=0, ge=0, le=60, description="seconds to wait for the result", allow_inf_nan=False
    )


class BatchRequest(Options):
    """POST /v1/batches."""

    prompts: list[Text] = Field(min_length=1, max_length=1000)
    seed: Seed = 0


class BetweenRequest(Request):
    """POST /v1/between."""

    prompt: Text
    toward: Text
    position: float = Field(ge=0, le=1, allow_inf_nan=False, description="0: prompt, 1: toward")
    model: ModelName | None = None
    seed: Seed = 0
    views: Literal[1, 4, 8, 24] = 8
    size: Literal[64, 96, 128, 256] = 96

    @model_validator(mode="after")
    def _check(self) -> BetweenRequest:
        check_pixels(self.views, self.size)
        return self


class FamiliarityRequest(Request):
    """POST /v1/familiarity."""

    prompt: Text
    model: ModelName | None = None


class ImageRequest(Request):
    """POST /v1/images/generations, in the shape of OpenAI's."""

    prompt: Text
    model: ModelName | None = None
    n: int = Field(default=1, ge=1, le=10)
    size: Literal["64x64", "128x128", "256x256", "512x512", "auto"] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    user: str | None = Field(default=None, max_length=200, description="ignored")
    seed: Seed = 0

    def options(self) -> Options:
        """The same wish as an object: one view from the front."""
        size: Any = 256 if self.size == "auto" else int(self.size.partition("x")[0])
        return Options(model=self.model, views=1, size=size)


def parse(kind: type[R], body: bytes) -> R:
    """The request in a body. Raises Problem that names each wrong field."""
    try:
        data = parse_json(body.decode("utf-8"), "the body")
    except ValueError as error:
        raise Problem("malformed_body", str(error)[:300]) from None
    if not isinstance(data, dict):
        raise Problem("malformed_body", f"the body is a JSON {type(data).__name__}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        errors = [
            {"field": ".".join(str(part)[:80] for part in one["loc"]), "problem": one["msg"][:300]}
            for one in error.errors(include_url=False, include_input=False, include_context=False)[:20]
        ]
        first = errors[0]
        detail = f"{first['field']}: {first['problem']}" if first["field"] else first["problem"]
        raise Problem("invalid_request", detail, errors=errors) from None


def object_id(digest: str, prompt: str, seed: int, settings: dict[str, Any]) -> str:
    """The id of an object: equal requests have the same one on every replica and after every restart."""
    return _sha256([CODE, digest, prompt, seed, settings])


def batch_id(objects: Sequence[str]) -> str:
    """The id of a batch of objects."""
    return _sha256([CODE, "batch", list(objects)])


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
