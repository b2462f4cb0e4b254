"""Finds ``libhps_torch.so`` and loads it into the process, once."""

import ctypes
import importlib.metadata
import os
import pathlib

FILE_NAME = "libhps_torch.so"

#: The library is built for this version of LibTorch's stable ABI and every later one.
OLDEST_TORCH = (2, 10)

_ARGUMENTS = "Tensor keys, str ps_config_file, str model_name, int table_id, int emb_vec_size"

#: The operators of the library. Their schemas are a promise to every saved model.
SCHEMAS = {
    "hps::lookup": f"hps::lookup({_ARGUMENTS}) -> Tensor",
    "hps_torch::hps_embedding_lookup": f"hps_torch::hps_embedding_lookup({_ARGUMENTS}) -> Tensor",
}

_loaded_path: str | None = None


def library_path() -> str:
    """Returns the path of the shared library that this process uses.

    Give it to ``torch.ops.load_library`` where the package is not imported, or to
    ``torch::jit`` programs that load the library themselves.
    """
    return _loaded_path if _loaded_path is not None else _packaged_path()


def load() -> None:
    """Loads the library unless its operators exist already, and checks their schemas.

    Raises:
        ImportError: torch is missing or too old, the library cannot be loaded, or another
            version of it has registered different operators.
    """
    global _loaded_path
    torch_version = _check_torch()

    import torch

    if _registered("hps::lookup"):
        # Loaded before us, by torch.ops.load_library or LD_PRELOAD: that copy has the stores.
        _loaded_path = _mapped_path()
    else:
        path = _packaged_path()
        try:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        except OSError as error:
            reason = error.__cause__ or error
            raise ImportError(_failure(torch_version, str(reason))) from error
        _loaded_path = path
    # Headers before torch 2.13 ignore a failed registration: look at what is there.
    for name, expected in SCHEMAS.items():
        found = _schema(name)
        if found != expected:
            raise ImportError(
                _failure(
                    torch_version,
                    f"operator {name} has the schema\n  {found}\nbut this package needs\n"
                    f"  {expected}\nAnother version of {FILE_NAME} is loaded in this process.",
                )
            )
    # Of several copies, the first that was loaded has the stores.
    _loaded_path = _serving_path() or _loaded_path


def c_library() -> ctypes.CDLL:
    """Returns the loaded library's C interface (``hps.h``).

    ctypes releases the GIL for the length of each call, so opening a store leaves other
    Python threads running.

    Raises:
        ImportError: The operators exist but the file that registered them is not known.
    """
    if _loaded_path is not None:
        return ctypes.CDLL(_loaded_path)
    # The operators are linked into the program itself.
    program = ctypes.CDLL(None)
    if not hasattr(program, "hps_version"):
        raise ImportError(
            f"hps_torch: torch.ops.hps.lookup exists, but no {FILE_NAME} is mapped into this "
            "process, so its C interface cannot be reached"
        )
    return program


def _packaged_path() -> str:
    return str(pathlib.Path(__file__).resolve().parent / "lib" / FILE_NAME)


def _check_torch() -> str:
    """Returns torch's version if it is new enough."""
    needed = ".".join(map(str, OLDEST_TORCH))
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            _failure("not installed", f"torch {needed} or newer is needed")
        ) from error
    version = str(torch.__version__)
    release = version.split("+", 1)[0].split(".")
    try:
        found = (int(release[0]), int(release[1]))
    except (IndexError, ValueError):
        # A development version with a name of its own: the schema check decides.
        return version
    if found < OLDEST_TORCH:
        raise ImportError(_failure(version, f"torch {needed} or newer is needed"))
    return version


def _failure(torch_version: str, reason: str) -> str:
    try:
        package_version = importlib.metadata.version("hps_torch")
    except importlib.metadata.PackageNotFoundError:
        package_version = "(not installed)"
    needed = ".".join(map(str, OLDEST_TORCH))
    return (
        f"hps_torch {package_version} cannot be used here.\n"
        f"torch found: {torch_version}; torch needed: {needed} or newer.\n"
        f"{reason}"
    )


def _schema(name: str) -> str | None:
    """Returns the schema of a registered operator as text."""
    import torch

    namespace, operator = name.split("::")
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    # No public name for it yet.
    return str(packet.default._schema) if packet is not None else None  # noqa: SLF001


def _registered(name: str) -> bool:
    return _schema(name) is not None


def _serving_path() -> str | None:
    """Returns the file whose operators serve this process, of all that are loaded."""
    function = c_library().hps_ops_library
    function.restype = ctypes.c_char_p
    path = function()
    return os.fsdecode(path) if path else None


def _mapped_path() -> str | None:
    """Returns the file that this process has mapped under the library's name."""
    maps = pathlib.Path("/proc/self/maps").read_text(errors="surrogateescape")
    for line in maps.splitlines():
        # address, permissions, offset, device, inode, path
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and pathlib.PurePath(fields[5]).name == FILE_NAME:
            return fields[5]
    return None
