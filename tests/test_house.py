"""The laws of the project that reading the sources can check.

Each rule is a function from source text to findings, and is itself tried on offenders and on innocents below.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

Finding = tuple[int, str]  # line, what is wrong
Rule = Callable[[str], Iterator[Finding]]

SOURCES = ("graphprune", "importance", "specs")

# --- law 3: no architecture names -----------------------------------------------------------------------

# The demo ships one small model and has to name its config class to build it. Nothing else is exempt.
NAMES_ALLOWED_IN = ("graphprune/demo/",)

# Model types that are also ordinary words of English, of mathematics or of this field. They are looked for
# only in the spelling of their classes (OPTConfig, PhiModel), never as bare words.
ORDINARY_WORDS = {"beam", "blt", "cohere", "ctrl", "dots", "git", "openai", "opt", "phi", "reformer"}

# Not architectures, though they contain the name of one.
OTHER_THINGS = re.compile(r"llama\.cpp|llm[-_ ]foundry", re.IGNORECASE)

# How checkpoints name their parts. Which part is which must come from the graph.
MODULE_NAMES = (
    r"[qkvo]_proj|qkv_proj|out_proj|gate_proj|up_proj|down_proj|gate_up_proj|in_proj_[a-z]+|kv_[ab]_proj|q_[ab]_proj"
    r"|self_attn|c_attn|c_proj|c_fc|Wqkv|query_key_value|dense_h_to_4h|dense_4h_to_h|fc[12]|lm_head|embed_tokens|wte|wpe"
)


def architecture_stems() -> set[str]:
    """The registered causal-LM model types, and their families without a version: qwen3 also gives qwen."""
    stems = set()
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        stems.add(name)
        stems.add(re.sub(r"[_-]v\d+.*$", "", name))  # the family, of names like family_v3
        if re.fullmatch(r"[a-z]+\d+", name):
            stems.add(name.rstrip("0123456789"))
    return {stem for stem in stems if len(stem) > 1}


def _architecture_pattern() -> re.Pattern[str]:
    """Matches on text in which every step from lower to upper case has become an underscore."""
    plain, classes = [], []
    for stem in sorted(architecture_stems(), key=lambda stem: (-len(stem), stem)):
        spelled = re.sub(r"[_-]", "[-_ ]?", stem)
        (classes if stem in ORDINARY_WORDS else plain).append(spelled)
    suffix = r"_?(config|model|for_causal|attention|decoder|mlp|block|pre_trained)"
    return re.compile(rf"(?<![a-z])(?:(?:{'|'.join(plain)})(?![a-z])|(?:{'|'.join(classes)}){suffix})")


ARCHITECTURE = _architecture_pattern()
MODULE = re.compile(rf"(?<![A-Za-z0-9])(?:{MODULE_NAMES})(?![A-Za-z0-9])")
CASE_STEP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def architecture_names(text: str) -> Iterator[Finding]:
    """Names of model families and of their modules, in code, strings and comments alike."""
    for number, line in enumerate(text.splitlines(), start=1):
        line = OTHER_THINGS.sub("", line)
        for match in ARCHITECTURE.finditer(CASE_STEP.sub("_", line).lower()):
            yield (
                number,
                f"{match.group()!r} names an architecture; derive it from the graph, or put it into specs/",
            )
        for match in MODULE.finditer(line):
            yield number, f"{match.group()!r} names a module of some architecture; derive it from the graph"


# --- never pickle ---------------------------------------------------------------------------------------

PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "torch.load": "use safetensors",
    "torch.save": "use safetensors",
    "yaml.load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "yaml.full_load": "use yaml.safe_load",
    "eval": "parse it",
    "exec": "parse it",
}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe_loading(text: str) -> Iterator[Finding]:
    """Ways of reading a file that can run what is in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            modules = []
        for module in modules:
            if module.split(".")[0] in PICKLES:
                yield node.lineno, f"imports {module}; use safetensors, JSON or YAML"
            if module in UNSAFE_CALLS:
                yield node.lineno, f"imports {module}; {UNSAFE_CALLS[module]}"
        if isinstance(node, ast.Call):
            name = _dotted(node.func)
            if name in UNSAFE_CALLS:
                yield node.lineno, f"calls {name}; {UNSAFE_CALLS[name]}"
            if any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords):
                yield node.lineno, f"calls {name} with allow_pickle"


# --- documented -----------------------------------------------------------------------------------------


def undocumented(text: str) -> Iterator[Finding]:
    """Modules, and public functions and classes at their top level, without a docstring."""
    tree = ast.parse(text)
    if tree.body and ast.get_docstring(tree) is None:
        yield 1, "the module has no docstring"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        overload = any(_dotted(d).endswith("overload") for d in node.decorator_list)
        if not node.name.startswith("_") and not overload and ast.get_docstring(node) is None:
            yield node.lineno, f"{node.name} is public and has no docstring"


# --- the rules on the tree ------------------------------------------------------------------------------


def sources(repository: Path) -> list[Path]:
    """Every Python file of the package, once: importance/ and specs/ not again through their symlinks."""
    found = []
    for folder in SOURCES:
        for path in sorted((repository / folder).rglob("*.py")):
            relative = path.relative_to(repository)
            if relative.parts[:2] not in {("graphprune", "importance"), ("graphprune", "specs")}:
                found.append(path)
    return found


@pytest.mark.parametrize("rule", [architecture_names, unsafe_loading, undocumented], ids=lambda rule: rule.__name__)
def test_house(rule: Rule, repository: Path):
    files = sources(repository)
    assert {"graphprune", "importance"} <= {path.relative_to(repository).parts[0] for path in files}
    findings = []
    for path in files:
        name = path.relative_to(repository).as_posix()
        if rule is architecture_names and name.startswith(NAMES_ALLOWED_IN):
            continue
        findings += [f"{name}:{line}: {what}" for line, what in rule(path.read_text(encoding="utf-8"))]
    assert not findings, "\n" + "\n".join(findings)


# --- the rules on offenders and on innocents ------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "from transformers import LlamaConfig",
        "if model_type == 'qwen3_moe':",
        "class QwenBlock:",
        "kind in ('gpt2', 'gptj')",
        "GPTNeoXAttention",
        "GPT-NeoX keeps its heads interleaved",
        "OPTConfig",
        "PhiModel",
        "DeepseekV3Config",
        "deepseek does this",
        "# works for Llama",
        "name.endswith('q_proj')",
        "model.layers.0.self_attn",
        "'gate_up_proj'",
        "block.c_fc.weight",
    ],
)
def test_architecture_names_are_found(text: str):
    assert list(architecture_names(f'"""Doc."""\n{text}\n')), text


@pytest.mark.parametrize(
    "text",
    [
        "opt = torch.optim.AdamW(parameters)",
        "opt in with --optional",
        "phi is the angle; git commit; Ctrl-C; beam search",
        "dots and commas cohere",
        "LLM-Pruner, LoRAPrune, Wanda, GPTQ, AWQ",
        "write a GGUF file for llama.cpp",
        "model.layers.3.mlp/mlp.channel",
        "projection, project, gate, router, expert, channel",
        "a philosophy of glimpses, optimizer state, embedding",
        "self.q_rank, kv_rank, head_dim",
    ],
)
def test_ordinary_text_is_left_alone(text: str):
    assert not list(architecture_names(text))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import joblib.numpy_pickle",
        "state = torch.load(file)",
        "from torch import load",
        "torch.save(model, file)",
        "yaml.load(text, Loader=yaml.Loader)",
        "numpy.load(file, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_unsafe_loading_is_found(text: str):
    assert list(unsafe_loading(text))


@pytest.mark.parametrize(
    "text",
    ['"""Never pickle."""', "model.eval()", "yaml.safe_load(text)", "numpy.load(f, allow_pickle=False)"],
)
def test_safe_loading_is_left_alone(text: str):
    assert not list(unsafe_loading(text))


def test_undocumented_names_are_found():
    text = "def f(): ...\nclass C: ...\nasync def g(): ...\ndef _h(): ...\n"
    assert [line for line, _ in undocumented(text)] == [1, 1, 2, 3]
    assert not list(undocumented('"""Doc."""\ndef f():\n    """Doc."""\n'))
    assert not list(undocumented(""))
