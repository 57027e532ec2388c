"""Rules of the house that a reader would otherwise have to check by eye."""

import ast
import re

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
FORBIDDEN_PREFIXES = ("get_", "compute_", "do_")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
# The error that a refused pickle raises.
HARMLESS = ("pickle.UnpicklingError",)


def functions(file):
    return [node for node in ast.walk(file.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def places(file, nodes):
    return [f"{file.path}:{node.lineno}" for node in nodes]


def is_true(node):
    return isinstance(node, ast.Constant) and node.value is True


def lines_of(function):
    """Lines from the first decorator on, the docstring not counted."""
    start = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring and isinstance(first.value.value, str) else 0
    return function.end_lineno - start + 1 - docstring


def test_no_drawer_modules(all_files):
    found = [f.path for f in all_files if FORBIDDEN_NAMES & {part.removesuffix(".py") for part in f.path.split("/")}]
    assert found == []


def test_no_file_is_too_long(all_files):
    lengths = {file.path: file.text.count("\n") for file in all_files}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_too_long(all_files):
    lengths = {f"{file.path}:{node.lineno}": lines_of(node) for file in all_files for node in functions(file)}
    assert {place: length for place, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_names_are_those_of_the_house(package_files):
    bad = []
    for file in package_files:
        bad += [f"{file.path}:{node.lineno} {node.name}" for node in functions(file) if is_badly_named(node.name)]
        classes = [node for node in ast.walk(file.tree) if isinstance(node, ast.ClassDef)]
        bad += [f"{file.path}:{n.lineno} {n.name}" for n in classes if re.search("Manager|Helper|^Base", n.name)]
    assert bad == []


def is_badly_named(name):
    # http.server calls methods do_GET and do_POST by that name.
    return (name.startswith(FORBIDDEN_PREFIXES) and not name[3:].isupper()) or name.endswith("_impl")


def test_every_module_and_public_name_says_what_it_is_for(package_files):
    silent = []
    for file in package_files:
        if file.text.strip() and ast.get_docstring(file.tree) is None:
            silent.append(file.path)
        for node in file.tree.body:
            is_public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if is_public and ast.get_docstring(node) is None:
                silent.append(f"{file.path}:{node.lineno} {node.name}")
    assert silent == []


def test_nothing_is_left_undone(package_files):
    mark = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
    found = [
        f"{file.path}:{number}"
        for file in package_files
        for number, line in enumerate(file.text.splitlines(), start=1)
        if mark.search(line)
    ]
    assert found == []


def test_no_failure_is_swallowed(all_files):
    found = []
    for file in all_files:
        handlers = [node for node in ast.walk(file.tree) if isinstance(node, ast.ExceptHandler)]
        broad = [h for h in handlers if h.type is None or ast.unparse(h.type) in ("Exception", "BaseException")]
        found += places(file, [h for h in broad if all(isinstance(s, (ast.Pass, ast.Continue)) for s in h.body)])
    assert found == []


def test_no_pickle_is_written_or_read(package_files):
    found = []
    for file in package_files:
        imports = [(line, name) for line, name in file.imports() if "." in name and name not in HARMLESS]
        found += [f"{file.path}:{line} {name}" for line, name in imports if name.split(".")[0] in PICKLES]
        for call, name in file.calls():
            found += places(file, [call] if name.split(".")[0] in PICKLES else [])
            arguments = {keyword.arg: keyword.value for keyword in call.keywords}
            loads_pickle = name == "torch.load" and not is_true(arguments.get("weights_only"))
            if name == "torch.save" or loads_pickle or is_true(arguments.get("allow_pickle")):
                found += places(file, [call])
    assert found == []


def test_remote_code_is_never_trusted_by_default(package_files):
    found = []
    for file in package_files:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and is_true(node.value):
                found.append(f"{file.path}:{node.value.lineno}")
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "trust_remote_code":
                values = [node.value, *(k.value for k in getattr(node.value, "keywords", []) if k.arg == "default")]
                found += places(file, [node] if any(map(is_true, values)) else [])
        for function in functions(file):
            found += places(file, [function] if "trust_remote_code" in trusted_defaults(function.args) else [])
    assert found == []


def trusted_defaults(arguments):
    """Names of the parameters whose default is True."""
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {argument.arg for argument, default in pairs if is_true(default)}


def test_no_text_is_run_as_code(package_files):
    dangerous = ("eval", "exec", "compile", "os.system", "yaml.unsafe_load", "yaml.full_load")
    found = []
    for file in package_files:
        calls = list(file.calls())
        found += places(file, [call for call, name in calls if name in dangerous])
        classes = [node for node in ast.walk(file.tree) if isinstance(node, ast.ClassDef)]
        safe = {node.name for node in classes if any(ast.unparse(base).endswith("SafeLoader") for base in node.bases)}
        for call in (call for call, name in calls if name == "yaml.load"):
            loaders = {ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "Loader"}
            found += places(file, [] if loaders and loaders <= safe else [call])
        found += places(file, [c for c, _ in calls if any(k.arg == "shell" and is_true(k.value) for k in c.keywords)])
    assert found == []


def test_text_files_name_their_encoding(package_files):
    # Windows reads with the encoding of the machine where none is given.
    found = []
    for file in package_files:
        for call, name in file.calls():
            has_encoding = any(keyword.arg == "encoding" for keyword in call.keywords)
            if not has_encoding and opens_text(name, call):
                found += places(file, [call])
    assert found == []


def opens_text(name, call):
    """Whether the call opens a file as text: ``open(path)``, ``path.open("w")``, ``path.read_text()``."""
    if name.endswith(".read_text"):
        return not call.args
    if name.endswith(".write_text"):
        return len(call.args) < 2
    if name == "open":
        modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    elif name.endswith(".open") and not name.startswith("os."):
        modes = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    else:
        return False
    if not modes:
        return True
    mode = modes[0].value if isinstance(modes[0], ast.Constant) else None
    return isinstance(mode, str) and re.fullmatch("[rwax]?[+]?t?[+]?", mode) is not None


def test_the_reader_of_modes_can_tell():
    def opens(code):
        call = ast.parse(code, mode="eval").body
        return opens_text(ast.unparse(call.func), call)

    assert all(map(opens, ["open(p)", "p.open()", 'p.open("w")', 'open(p, mode="r+")', "p.read_text()"]))
    assert not any(map(opens, ['open(p, "rb")', 'p.open("rb+")', "archive.open(name)", "os.open(p, 0)", "f(p)"]))
