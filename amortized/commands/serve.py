"""Serve trained generators over HTTP: text in, pictures and 3D files out.

  amortized serve --open
  amortized serve outputs/quickstart
  amortized serve exported/quickstart outputs/mine --port 8080 --store /var/lib/amortized3d
  amortized serve exported/quickstart --host 0.0.0.0 --token-file tokens.txt

Without a FOLDER it serves the small generator of checkpoints/, trained on the quickstart's 16 prompts.
Each folder is a run or an export; clients choose one by its name, the first is the default, and a run is
loaded again when it has a newer checkpoint. Listens to this machine alone unless a --token-file says who may
use it. Serves until Ctrl-C or SIGTERM, finishes what was accepted, and continues the rest after a restart.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import webbrowser
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from amortized.arguments import number, path, path_text, text, whole
from amortized.files import in_project

if TYPE_CHECKING:
    from amortized.generation import ModelSource
    from amortized.serve.server import Engines, ServiceConfig

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")  # of the extra `serve`
BATCH_WAIT_S = 0.005  # on a GPU; a CPU gains nothing by waiting
GiB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        type=path_text,
        nargs="*",
        metavar="FOLDER",
        help="a run or an exported folder (default: the small generator of checkpoints/)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--host", type=text, default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8000, help="0: a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--token-file", type=path, help="lines of a name and a token; needed if others can reach the address"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: %(default)s)")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers", type=whole(1, 256), help="processes for files (default: cores - 1; on a GPU 1)"
    )
    work.add_argument("--batch-size", type=whole(1, 64), help="previews in a call (default: by memory)")
    work.add_argument(
        "--preview-seconds", type=number(1, 3600), default=60, help="limit of a call (default: %(default)g)"
    )
    work.add_argument(
        "--asset-seconds",
        type=number(1, 36_000),
        default=300,
        help="limit of an object (default: %(default)g)",
    )
    work.add_argument(
        "--asset-gib", type=number(0.1, 4096), default=8, help="memory of a worker (default: %(default)g)"
    )
    work.add_argument(
        "--depth", type=whole(1, 10**6), default=256, help="waiting objects (default: %(default)s)"
    )
    work.add_argument(
        "--reload", type=number(0, 86_400), default=30, metavar="SECONDS",
        help="between looks for a newer checkpoint of runs; 0: never (default: %(default)g)",
    )  # fmt: skip
    store = parser.add_argument_group("store")
    store.add_argument(
        "--store", type=path, default=Path("served"), help="folder of results (default: %(default)s)"
    )
    store.add_argument(
        "--store-gib", type=number(0.01, 10**6), default=10, help="its size (default: %(default)g)"
    )
    store.add_argument(
        "--keep-hours",
        type=number(0.01, 10**6),
        default=168,
        help="of results without use (default: %(default)g)",
    )
    quota = parser.add_argument_group("each token (with --token-file)")
    quota.add_argument(
        "--requests-per-minute", type=whole(1, 10**6), default=600, help="default: %(default)s"
    )
    quota.add_argument(
        "--objects", type=whole(1, 10**6), default=16, help="that have not ended (default: %(default)s)"
    )
    quota.add_argument(
        "--asset-seconds-per-hour",
        type=number(1, 10**7),
        default=3600,
        help="of workers (default: %(default)g)",
    )
    parser.add_argument("--log-prompts", action="store_true", help="the log also has the text of prompts")
    parser.add_argument(
        "--grace",
        type=number(0, 3600),
        default=30,
        help="seconds to finish after SIGTERM (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve; returns the exit status."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"a service needs {package.replace('_', '-')}, which is not installed: "
                "pip install 'amortized3d[serve]', or pip install fastapi uvicorn prometheus-client"
            )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from amortized.serve import server
    from amortized.serve.logs import logging_to_stderr

    if not args.models:
        from corpora import SMALL_GENERATOR

        args.models = [in_project(SMALL_GENERATOR)]
    server.check_exposure(config_of(args))

    def on_listening(address: str) -> None:
        names = ", ".join(name for name, *_ in loaded.engines)
        print(f"{address} serves {names}; results go to {args.store}; press Ctrl-C to stop", flush=True)
        if args.open:
            Thread(target=open_browser, args=[address], daemon=True).start()

    with logging_to_stderr():
        loaded = load_engines(args)
        on_cpu = all(engine.about()["device"] == "cpu" for _, engine, _ in loaded.engines)
        left = server.run(config_of(args, on_cpu=on_cpu), loaded, on_listening)
    if left:
        print(f"note: {left:,} accepted objects are not finished: the same command continues them")
    return 0


def open_browser(address: str) -> None:
    """Open the page, if there is a desktop; a browser in this terminal would hide the service."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open_new_tab(address)


def config_of(args: argparse.Namespace, *, on_cpu: bool = True) -> ServiceConfig:
    """The settings of the service."""
    from amortized.serve.access import Quota
    from amortized.serve.app import Settings
    from amortized.serve.jobs import Limits
    from amortized.serve.server import ServiceConfig

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ServiceConfig(
        store=args.store,
        host=args.host,
        port=args.port,
        tokens=args.token_file,
        workers=args.workers or (max(1, cores - 1) if on_cpu else 1),
        batch_wait_s=0.0 if on_cpu else BATCH_WAIT_S,
        preview_limit_s=args.preview_seconds,
        asset_limit_s=args.asset_seconds,
        asset_memory=int(args.asset_gib * GiB) if on_cpu else None,  # a GPU's drivers map more than there is
        store_bytes=int(args.store_gib * GiB),
        keep_s=3600 * args.keep_hours,
        grace_s=args.grace,
        reload_s=args.reload or None,
        limits=Limits(depth=args.depth),
        quota=Quota(
            requests_per_minute=args.requests_per_minute,
            objects=args.objects,
            asset_seconds_per_hour=args.asset_seconds_per_hour,
        ),
        requests=Settings(log_prompts=args.log_prompts),
    )


def load_engines(args: argparse.Namespace) -> Engines:
    """Load all models. Raises ValueError."""
    from amortized.commands.trained_on import knowledge_of_run
    from amortized.generation import ModelSource
    from amortized.knowledge import read_knowledge
    from amortized.serve.engine import Engine, make_asset_files, newer, pinned
    from amortized.serve.job import PreviewItem
    from amortized.serve.models import names_of
    from amortized.serve.server import Engines

    sources: list[ModelSource] = [
        ModelSource(path=one, is_run=(Path(one) / "config.yaml").exists(), device=args.device)
        for one in args.models
    ]
    engines = []
    for name, source in zip(names_of(args.models), sources, strict=True):
        folder = Path(source.path)
        knowledge = knowledge_of_run(folder) if source.is_run else read_knowledge(folder)
        engine = Engine.load(pinned(source), knowledge)
        engine.familiarity("a cube")
        engine.preview_batch(
            [PreviewItem(prompt="a cube", seed=0, views=1, size=64)]
        )  # the first one is slow
        engines.append((name, engine, args.batch_size or engine.batch_size()))
    return Engines(engines=engines, maker=make_asset_files, newer=newer)
