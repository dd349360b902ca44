"""From raw features (n, dim) to the R columns that are encrypted:
a linear map that all institutions agree on and check.

::

    raw (n_i, dim)  --moment_values-->  scaled moments  --secure sum-->  pooled_moments: mean, second moment of all rows
                                                                           |
            first institution:  whiten / random_projection  <--------------+-->  others:  check_whiten / check_random
                                            |  matrix, offset, eta                            | accept or Refused
                                            v                                                 v
    raw (n_i, dim)  --clip to [-B, B]-->  matrix x + offset  --clip norm to 2 sqrt(R)-->  append 1 --> columns (n_i, R)

``whiten``: with C the pooled covariance, eigenvalues l_1 >= l_2 >= ... and eigenvectors v_i, row i of the matrix is
v_i / sqrt(max(l_i, f l_1)), f the floor, and the offset is -matrix mean. The columns get (nearly) unit variance and no
correlation, so that the training problem is well conditioned and five gradient steps are enough. ``random``: Gaussian
directions from the run id, each column standardised; nobody chooses anything, but the columns stay correlated.

**Why others check.** Whoever writes the matrix could aim a column at one patient. Eigenvectors of equal eigenvalues are
not unique, and eigensolvers differ in the last bits, so nobody can compare bytes: the others test what defines a
whitening, to 1e-3. Among eigenvalues closer than about 1e-3 max(l, f l_1) the first institution keeps its choice of
basis. Honest rounding to float32 costs about 1e-6.

**Step size.** eta = 1 / (1.1 lambda / 4 + ridge), lambda the largest eigenvalue of the second moment of the R columns:
1/4 bounds the slope of the sigmoid, 1.1 allows for the norm clip, which shifts the mean.

numpy only: server and custodians read projections too, and they never import torch.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.config import WHITEN_FLOOR
from focal.errors import FocalError, ProtocolError, Refused

Real = NDArray[np.float64]
Single = NDArray[np.float32]
Kind = Literal["whiten", "random"]

TOLERANCE: Final = 1e-3
"""How far a signed projection may be from what the others compute."""
CLIP_MARGIN: Final = 1.1
"""Factor on the largest eigenvalue, for the norm clip."""

_SINGLE_ROUNDING = 2.0**-23
_CHUNK = 4096  # rows converted to float64 at a time
_RESOLUTION = 1e-10
"""Least variance over bound^2 that is worked with: 1024 members' rounding to 48 fraction bits,
2^-48 sqrt(1024 / 12), is 3e-4 of it."""
_MAGIC = b"focal/projection/v1\0"
_HEADER = struct.Struct("<BIIdd")  # kind, features, dim, bound, eta
_KINDS: tuple[Kind, ...] = ("whiten", "random")
_MAX_SIDE = 1 << 16


# --------------------------------------------------------------------------- moments


@dataclass(frozen=True, eq=False)
class Moments:
    """Pooled first and second moments of ``n`` rows: what a secure sum opened."""

    n: int
    mean: Real
    """(dim,)"""
    second: Real
    """(dim, dim), the mean of x x'."""

    @property
    def dim(self) -> int:
        return self.mean.size

    @property
    def covariance(self) -> Real:
        """(dim, dim), symmetric."""
        return self.second - np.outer(self.mean, self.mean)


def moment_values(raw: NDArray[np.floating], bound: float, n_total: int) -> Real:
    """One institution's part of the pooled moments, ready for :func:`focal.sums.fixed.encode`.

    ``raw`` (n_i, dim) is clipped to [-bound, bound]. Returns dim + dim (dim + 1) / 2 values: the sums of x scaled by
    1 / (n bound), then the upper triangle, row by row, of the sum of x x' scaled by 1 / (n bound^2); summed over the
    institutions each is at most 1 in magnitude. ``n_total`` is n, the manifest's sum of rows. Raises
    :class:`FocalError` on NaN or infinite features.
    """
    rows, dim = _checked(raw).shape
    if not 0 < rows <= n_total:
        raise FocalError(
            f"{rows} rows of features, but the manifest counts {n_total} in all",
            hint="correct the manifest's row counts",
        )
    first, second = np.zeros(dim), np.zeros((dim, dim))
    for start in range(0, rows, _CHUNK):
        unit = _clipped(raw[start : start + _CHUNK], bound) / bound
        first += unit.sum(axis=0)
        second += unit.T @ unit
    return np.concatenate([first, second[np.triu_indices(dim)]]) / n_total


def moment_count(dim: int) -> int:
    """Length of :func:`moment_values` for ``dim`` features."""
    return dim + dim * (dim + 1) // 2


def pooled_moments(opened: Real, dim: int, bound: float, n: int) -> Moments:
    """Moments of all n rows from the opened, decoded sum of everybody's :func:`moment_values`
    (made with the same ``bound``).

    Raises :class:`ProtocolError` when the sum has another length or values that no clipped rows can have: some member
    contributed something else.
    """
    if opened.shape != (moment_count(dim),):
        raise ProtocolError(f"the opened moments have {opened.size} values, {dim} features need {moment_count(dim)}")
    if not np.all(np.abs(opened) <= 1 + 1e-9):  # 1e-9: fixed-point rounding of up to 1024 members, 2^-39
        raise ProtocolError(
            "the opened moments are larger than clipped features can give",
            hint="a member used another bound or row count than the manifest's, or contributed something else",
        )
    second = np.zeros((dim, dim))
    second[np.triu_indices(dim)] = opened[dim:] * bound**2
    return Moments(n, opened[:dim] * bound, second + np.triu(second, 1).T)


def rows_warning(rows: int, dim: int) -> str | None:
    """What to tell an institution whose ``rows`` are fewer than its ``dim`` feature dimensions, else ``None``."""
    if rows >= dim:
        return None
    return (
        f"only {rows} training rows for {dim} feature dimensions: the pooled moments, which every institution sees, "
        "say more about each of these patients than they would with more rows (add rows, "
        "or cut the lower segment where it has fewer features)"
    )


# --------------------------------------------------------------------------- the projection


@dataclass(frozen=True, eq=False)
class Projection:
    """The agreed map from raw features to R columns, with the step size that belongs to them.
    Compare by :attr:`digest`."""

    kind: Kind
    matrix: Single
    """(R-1, dim)"""
    offset: Single
    """(R-1,)"""
    bound: float
    """B: raw features are clipped to [-B, B]."""
    features: int
    """R: R - 1 components and the bias column."""
    eta_hex: str
    """Step size of the training, as ``float.hex``: every party uses the same 64 bits."""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ProtocolError(f"malformed projection: {problem}")

    def _problem(self) -> str | None:
        if self.kind not in _KINDS:
            return f"unknown kind {self.kind!r}"
        if not 2 <= self.features <= _MAX_SIDE:
            return f"{self.features} features"
        if self.matrix.dtype != np.float32 or self.offset.dtype != np.float32:
            return "matrix and offset must be float32"
        if (
            self.matrix.ndim != 2
            or not 1 <= self.matrix.shape[1] <= _MAX_SIDE
            or self.matrix.shape[0] != self.features - 1
        ):
            return f"matrix of shape {self.matrix.shape} for {self.features} features"
        if self.offset.shape != (self.features - 1,):
            return f"offset of shape {self.offset.shape} for {self.features} features"
        if not (np.isfinite(self.matrix).all() and np.isfinite(self.offset).all()):
            return "matrix or offset hold values that are not finite"
        try:
            eta = self.eta
        except (ValueError, OverflowError):
            return f"step size {self.eta_hex!r} is not a hexadecimal float"
        if not (math.isfinite(eta) and eta > 0 and eta.hex() == self.eta_hex):
            return f"step size {self.eta_hex!r} is not a positive float in canonical form"
        if not (math.isfinite(self.bound) and self.bound > 0):
            return f"bound {self.bound!r}"
        return None

    @property
    def dim(self) -> int:
        """Length of a raw feature vector."""
        return self.matrix.shape[1]

    @property
    def eta(self) -> float:
        return float.fromhex(self.eta_hex)

    def apply(self, raw: NDArray[np.floating]) -> Real:
        """Raw features (n, dim) -> columns (n, R) in float64, the last of them 1.
        Raises :class:`FocalError` on NaN or another dim."""
        if _checked(raw).shape[1] != self.dim:
            raise FocalError(
                f"features have {raw.shape[1]} dimensions, the projection has {self.dim}", hint="use its lower segment"
            )
        components = _clipped(raw, self.bound) @ self.matrix.T.astype(np.float64) + self.offset
        norm = np.linalg.norm(components, axis=1, keepdims=True)
        limit = 2 * math.sqrt(self.features)
        components *= limit / np.maximum(norm, limit)
        return np.hstack([components, np.ones_like(norm)])

    def to_bytes(self) -> bytes:
        """Canonical bytes, for signing: header, matrix row by row, offset; little-endian."""
        header = _HEADER.pack(_KINDS.index(self.kind), self.features, self.dim, self.bound, self.eta)
        return _MAGIC + header + self.matrix.astype("<f4").tobytes() + self.offset.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Projection:
        """The projection with these :meth:`to_bytes`. Raises :class:`ProtocolError` on anything else,
        before it allocates."""
        start = len(_MAGIC) + _HEADER.size
        if len(data) < start or not data.startswith(_MAGIC):
            raise ProtocolError("malformed projection: not in the format 'focal/projection/v1'")
        kind, features, dim, bound, eta = _HEADER.unpack(data[len(_MAGIC) : start])
        if kind >= len(_KINDS) or not 2 <= features <= _MAX_SIDE or not 1 <= dim <= _MAX_SIDE:
            raise ProtocolError(f"malformed projection: kind {kind}, {features} features, {dim} dimensions")
        if len(data) != start + 4 * (features - 1) * (dim + 1):
            raise ProtocolError(f"malformed projection: {len(data)} bytes for {features} features of {dim} dimensions")
        values = np.frombuffer(data, "<f4", offset=start).astype(np.float32)
        matrix, offset = values[: (features - 1) * dim].reshape(features - 1, dim), values[(features - 1) * dim :]
        return cls(_KINDS[kind], matrix, offset, bound, features, eta.hex())

    @property
    def digest(self) -> bytes:
        """SHA-256 of :meth:`to_bytes`."""
        return hashlib.sha256(self.to_bytes()).digest()


def step_size(second: Real, ridge: float) -> float:
    """eta = 1 / (1.1 lambda_max / 4 + ridge) for ``second`` (R, R), the second moment of the projected columns
    joined with the bias."""
    return 1.0 / (CLIP_MARGIN * float(np.linalg.eigvalsh(second)[-1]) / 4.0 + ridge)


def check_features(features: int, dim: int) -> None:
    """Raise :class:`FocalError` when ``features`` columns (the bias included)
    cannot be made of ``dim`` raw features."""
    if features - 1 > dim:
        raise FocalError(
            f"projection.features is {features}, but the lower segment gives {dim} features: "
            f"at most {dim} components and the bias",
            hint=f"set projection.features to {dim + 1} or less, or cut the lower segment where it is wider",
        )


# --------------------------------------------------------------------------- whiten


def whiten(moments: Moments, features: int, bound: float, ridge: float, floor: float = WHITEN_FLOOR) -> Projection:
    """The whitening of the pooled moments, in float32: what the first institution signs.

    Raises :class:`FocalError` when the moments have fewer than ``features`` - 1 dimensions or (almost) no variance.
    """
    check_features(features, moments.dim)
    values, vectors = np.linalg.eigh(moments.covariance)
    values, rows = values[::-1][: features - 1], vectors.T[::-1][: features - 1]
    largest = _resolved(float(values[0]), bound)
    peak = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    scale = np.sign(peak) / np.sqrt(np.maximum(values, floor * largest))
    matrix = (rows * scale[:, None]).astype(np.float32)
    rounded = matrix.astype(np.float64)  # offset and step size belong to the rounded matrix, which is what others get
    offset = (-rounded @ moments.mean).astype(np.float32)
    eta = step_size(_joined(rounded, offset.astype(np.float64), moments), ridge)
    return Projection("whiten", matrix, offset, bound, features, eta.hex())


def check_whiten(
    projection: Projection,
    moments: Moments,
    features: int,
    bound: float,
    ridge: float,
    floor: float = WHITEN_FLOOR,
) -> None:
    """Accept ``projection`` only if it is a whitening of ``moments`` for the manifest's features, bound, ridge and
    floor f.

    For every row p_i, counted from 1, with eigenvalues l recomputed here::

        |C p_i - l_i p_i| <= 1e-3 l_1 |p_i|
        | |p_i|^2 max(l_i, f l_1) - 1 | <= 1e-3
        row i of P C P' within 1e-3 of that of diag(min(1, l_i / f l_1))
        cosines between rows <= 1e-3        (follows from the former, except among directions without variance)

    and offset and eta within 1e-3. Raises :class:`Refused` ('projection') naming the row and the inequality that fails.
    """
    check_frame(projection, "whiten", features, moments.dim, bound)
    covariance = moments.covariance
    values = np.linalg.eigvalsh(covariance)[::-1][: features - 1]
    largest = _resolved(float(values[0]), bound)
    floored = np.maximum(values, floor * largest)

    rows = projection.matrix.astype(np.float64)
    image = rows @ covariance
    length = np.linalg.norm(rows, axis=1)
    residual = np.linalg.norm(image - values[:, None] * rows, axis=1)
    _require_rows("|C p - l p| <= 1e-3 l_1 |p|", residual, TOLERANCE * largest * length)
    _require_rows("| |p|^2 max(l, f l_1) - 1 | <= 1e-3", np.abs(length**2 * floored - 1), TOLERANCE)
    variances = np.diag(np.minimum(1.0, values / (floor * largest)))
    _require_rows(
        "|P C P' - diag(min(1, l / f l_1))| <= 1e-3", np.abs(image @ rows.T - variances).max(axis=1), TOLERANCE
    )
    cosines = (rows @ rows.T) / np.outer(length, length)
    _require_rows("|cos(p, other rows)| <= 1e-3", np.abs(cosines - np.eye(len(rows))).max(axis=1), TOLERANCE)
    _check_offset(projection, -rows @ moments.mean)
    _check_eta(projection, step_size(_joined(rows, projection.offset.astype(np.float64), moments), ridge))


# --------------------------------------------------------------------------- random


def random_directions(run_id: bytes, features: int, dim: int) -> Real:
    """(R-1, dim) Gaussians from SHAKE-256 of ``focal/projection/v1`` and the run id, framed, by Box and Muller.

    Rounded to multiples of 2^-16, so that the last bit of a platform's logarithm almost never shows (and then
    as 2^-16), that they are exact in float32, and that sums of their magnitudes are exact in float64.
    """
    count = (features - 1) * dim
    pairs = (count + 1) // 2
    words = np.frombuffer(
        hashlib.shake_256(framing.framed(b"focal/projection/v1", run_id)).digest(16 * pairs), "<u8"
    ).reshape(2, pairs)
    uniform = ((words >> np.uint64(12)) + 0.5) * 2.0**-52  # in (0, 1), exact
    radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * np.pi * uniform[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return (np.rint(normal * 2.0**16) * 2.0**-16).reshape(features - 1, dim)


def random_moment_values(raw: NDArray[np.floating], run_id: bytes, features: int, bound: float, n_total: int) -> Real:
    """One institution's part of the moments of its R-1 columns along :func:`random_directions`;
    as :func:`moment_values`."""
    directions = random_directions(run_id, features, _checked(raw).shape[1])
    return moment_values(_clipped(raw, bound) @ directions.T, _column_bound(directions, bound), n_total)


def random_pooled_moments(opened: Real, run_id: bytes, features: int, dim: int, bound: float, n: int) -> Moments:
    """Pooled moments of the R-1 columns from the opened sum of everybody's :func:`random_moment_values`."""
    return pooled_moments(opened, features - 1, _column_bound(random_directions(run_id, features, dim), bound), n)


def random_projection(
    moments: Moments, run_id: bytes, features: int, dim: int, bound: float, ridge: float
) -> Projection:
    """:func:`random_directions`, each column standardised by ``moments`` (of the columns, R-1 of them).

    Raises :class:`FocalError` when ``dim`` is below ``features`` - 1 or a column has (almost) no variance.
    """
    check_features(features, dim)
    directions = random_directions(run_id, features, dim)
    variance: Real = np.diag(moments.covariance)
    _resolved(float(variance.min()), _column_bound(directions, bound))
    scale = 1 / np.sqrt(variance)
    offset = -moments.mean * scale
    eta = step_size(_joined(np.diag(scale), offset, moments), ridge)
    matrix = (directions * scale[:, None]).astype(np.float32)
    return Projection("random", matrix, offset.astype(np.float32), bound, features, eta.hex())


def check_random(
    projection: Projection, moments: Moments, run_id: bytes, features: int, dim: int, bound: float, ridge: float
) -> None:
    """Accept ``projection`` only if it is, to 1e-3, the one that is computed here.
    Raises :class:`Refused` like :func:`check_whiten`."""
    check_frame(projection, "random", features, dim, bound)
    expected = random_projection(moments, run_id, features, dim, bound, ridge)
    rows, wanted = projection.matrix.astype(np.float64), expected.matrix.astype(np.float64)
    distance = np.linalg.norm(rows - wanted, axis=1)
    _require_rows("|p - direction / deviation| <= 1e-3 |p|", distance, TOLERANCE * np.linalg.norm(wanted, axis=1))
    _check_offset(projection, expected.offset.astype(np.float64))
    _check_eta(projection, expected.eta)


def _column_bound(directions: Real, bound: float) -> float:
    """The largest value that a column can have on clipped features: bound times the largest 1-norm of a direction."""
    return bound * float(np.abs(directions).sum(axis=1).max())


# --------------------------------------------------------------------------- parts of the above


def _checked(raw: NDArray[np.floating]) -> NDArray[np.floating]:
    if raw.ndim != 2 or not raw.shape[1]:
        raise FocalError(f"features must be a matrix (rows, dimensions), not {raw.shape}")
    bad = ~np.isfinite(raw).all(axis=1)
    if bad.any():
        raise FocalError(
            f"{int(bad.sum())} of {len(raw)} rows have NaN or infinite features, "
            f"the first is row {int(np.argmax(bad))}",
            hint="look at that row's image, and at the weights of the lower segment",
        )
    return raw


def _clipped(raw: NDArray[np.floating], bound: float) -> Real:
    return cast(Real, np.clip(raw.astype(np.float64), -bound, bound))


def _resolved(variance: float, bound: float) -> float:
    """``variance``, if the secure sum resolves it on values up to ``bound``. Written so that NaN fails."""
    if not variance > _RESOLUTION * bound**2:
        raise FocalError(
            f"the pooled features hardly vary: variance {variance:.1e}, with values allowed up to {bound:g}",
            hint="check the lower segment's weights and the images; "
            "lower projection.bound if the features are this small",
        )
    return variance


def _joined(matrix: Real, offset: Real, moments: Moments) -> Real:
    """(R, R) second moment of (matrix x + offset, 1)."""
    mean = matrix @ moments.mean + offset
    size = len(mean) + 1
    joined = np.ones((size, size))
    joined[:-1, :-1] = matrix @ moments.covariance @ matrix.T + np.outer(mean, mean)
    joined[:-1, -1] = joined[-1, :-1] = mean
    return joined


def check_frame(projection: Projection, kind: Kind, features: int, dim: int, bound: float) -> None:
    """Raise :class:`Refused` (``projection``) unless a projection has the agreed kind, sizes and bound."""
    for name, got, agreed in (
        ("kind", projection.kind, kind),
        ("features", projection.features, features),
        ("dim", projection.dim, dim),
        ("bound", projection.bound, bound),
    ):
        if got != agreed:
            raise _refusal(f"{name} is {got}, agreed was {agreed}")


def _check_offset(projection: Projection, expected: Real) -> None:
    allowed = TOLERANCE + _SINGLE_ROUNDING * np.abs(expected)
    _require_rows("|offset - expected offset| <= 1e-3", np.abs(projection.offset - expected), allowed)


def _check_eta(projection: Projection, expected: float) -> None:
    if not abs(projection.eta - expected) <= TOLERANCE * expected:
        raise _refusal(
            "step size: |eta - expected eta| <= 1e-3 expected eta fails: "
            f"eta {projection.eta:.6g}, expected {expected:.6g}"
        )


def _require_rows(inequality: str, left: Real, right: Real | float) -> None:
    """``left`` <= ``right`` for every row, or refuse and name the first that fails. NaN fails."""
    fails = ~(left <= right)
    if fails.any():
        row = int(np.argmax(fails))
        limit = np.broadcast_to(right, left.shape)[row]
        raise _refusal(f"row {row + 1}: {inequality} fails: {left[row]:.3e} against {limit:.3e}")


def _refusal(why: str) -> Refused:
    return Refused(
        "projection",
        f"the first institution's projection does not follow from the pooled moments: {why}",
        hint="every institution must run the same version on the same manifest; "
        "otherwise the first institution deviates",
    )
