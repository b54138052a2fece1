"""The student's weights with what rebuilds it: ``student.safetensors``. Needs raydistill where it is loaded."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from raydistill.errors import ConfigError, WeightsError
from raydistill.exporting.deployed import Deployed, Description
from raydistill.exporting.parity import Predictor
from raydistill.models.loading import build_described
from raydistill.models.weights import save_weights
from raydistill.models.zoo import FUNCTION, check_name
from raydistill.network_config import NetworkConfig

FILE = "student.safetensors"
_KEY = "raydistill"


def write(deployed: Deployed, path: Path) -> None:
    """Write the weights under the student's own names, the description among the metadata.

    Raises:
        ConfigError: where the network is a function of the user's own, which no name brings back elsewhere.
    """
    _refuse_function(deployed.description, "the student")
    save_weights(deployed.network, path, metadata={_KEY: deployed.description.model_dump_json()})


def load_exported(path: str | PathLike[str]) -> Deployed:
    """Rebuild a student that ``raydistill export --format safetensors`` wrote.

    Args:
        path: the file, or the folder that holds it.

    Returns:
        A module in evaluation mode, frozen: float images [B, C, H, W] in [0, 1] -> ``logits``, ``embedding``.

    Raises:
        WeightsError: if the file is missing, damaged or no exported student.
        ConfigError: if it names a network that is not known here; a name never imports code of the file's choice.
    """
    source = Path(path) / FILE if Path(path).is_dir() else Path(path)
    description = _description(source)
    _refuse_function(description, str(source))
    check_name(description.model)
    network = NetworkConfig.model_construct(model=description.model, weights=str(source), taps=description.taps)
    channels = description.image_shape[0]
    return Deployed(build_described(network, description.num_classes, channels), description)


def load(path: Path) -> Predictor:
    """Load the file back to be compared."""
    return load_exported(path)


def lines(description: Description) -> str:
    """Return the three lines that load and run it."""
    shape = ", ".join(map(str, description.image_shape))
    return (
        "import raydistill, torch\n"
        f'student = raydistill.load_exported("{FILE}")\n'
        f"outputs = student(torch.zeros(1, {shape}))"
    )


def _refuse_function(description: Description, whose: str) -> None:
    if FUNCTION in description.model:
        raise ConfigError(
            f"{whose}: model '{description.model}' is code of one's own, which weights alone do not bring back; "
            "export with --format onnx or torch"
        )


def _description(source: Path) -> Description:
    if not source.is_file():
        raise WeightsError(
            f"no exported student at {source}; write one with raydistill export RUN --format safetensors"
        )
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot read {source}: {str(error).splitlines()[0]}") from None
    if _KEY not in metadata:
        raise WeightsError(f"{source} holds weights alone; write one with raydistill export RUN --format safetensors")
    try:
        return Description.model_validate_json(metadata[_KEY])
    except ValidationError as error:
        raise WeightsError(f"{source}: its description is damaged ({error.error_count()} faults)") from None
