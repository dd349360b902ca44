"""A ROC curve over several hospitals' evaluations of one model, by files:
no server, no key of a run, and no site's scores.

::

    north  focal evaluate RUN ... --pool sites --key north.key.json  -->  sites/north.counts  -+   copied to all,
    south  the same with its own images and key                      -->  sites/south.counts  -+-> the same command
    west   ...                                                       -->  sites/west.counts   -+   again:
                                                                                                   pooled_roc.json, .png

    NAME.counts   signature (64)  exchange (32)  masked counts (8 bytes each)
    exchange      hash of model, folder's name, sites and keys

``sites`` holds the NAME.public.json of every site (``focal keys new``), the same files everywhere. Counts are
those of :mod:`focal.measure.histogram`, hidden by pairwise masks (:mod:`focal.sums.masked`); the masks cancel in
the sum over all sites, and in no other. There is no mask over the total: whoever holds all files reads the pooled
counts, which is what they are for.

**Whose keys.** Who can replace *all* other sites' public files at one site knows its masks. Every run prints the
exchange's fingerprint: compare it by telephone, as with a manifest. **Made once.** Two different contributions to one
exchange would show their difference. What was sent lies beside the private key, 0600, and other counts are refused; a
second exchange is a folder of another name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from focal import framing
from focal.errors import FocalError, ProtocolError, Refused
from focal.files import private_write
from focal.manifest import Member
from focal.measure import histogram
from focal.net.identity import Identity, read_public, verify
from focal.reporting.pooled import plot_pooled
from focal.segments.upper import ModelMeta
from focal.sums import fixed
from focal.sums.masked import MaskedSum
from focal.task import scored_classes

DOMAIN: Final = b"focal/pooled-evaluation/v2"
LEAST: Final = 3
"""With two sites each would read the other's counts."""
PUBLIC, COUNTS = ".public.json", ".counts"


class Pool:
    """One site's part in one exchange.

    Raises :class:`FocalError` when the folder's public files cannot be used: fewer than three,
    one that is not its name's, two with one key, or without this site's own.
    """

    def __init__(self, folder: Path, key: Path, meta: ModelMeta) -> None:
        self.folder, self.identity = folder, Identity.load(key)
        self.me = self.identity.name
        self.sites = _sites(folder)
        if self.sites.get(self.me) != self.identity.member("custodian", verify="off"):
            raise FocalError(
                f"{folder}: no {self.me}{PUBLIC} that belongs to {key}",
                hint=f"put the public file there that 'focal keys new' wrote beside {key.name}",
            )
        self.classes = scored_classes(meta.classes, meta.task)
        self.exchange = self._exchange(meta)
        self._memory = key.with_name(f"{self.me}.pooled-{self.fingerprint}{COUNTS}")
        publics = {name: bytes.fromhex(site.seal) for name, site in self.sites.items()}
        group = framing.digest(
            b"focal/pooled-group/v1", self.exchange
        )  # public: nothing is hidden from who holds all files
        self._sum = MaskedSum(
            self.exchange, "evaluation", self.me, tuple(self.sites), self.identity.seal_secret, publics, group
        )

    @property
    def fingerprint(self) -> str:
        """What all sites must see alike: 16 hexadecimal digits."""
        return self.exchange.hex()[:16]

    @property
    def missing(self) -> list[str]:
        """Sites whose counts are not in the folder."""
        return [name for name in self.sites if not (self.folder / f"{name}{COUNTS}").exists()]

    def add(self, counts: histogram.Counts) -> None:
        """Write this site's ``counts`` (C, 2, BINS), masked and signed.
        Raises :class:`Refused` for other counts than it gave before."""
        masked = self._sum.contribution(fixed.encode(counts.ravel().astype(float), 0))
        data = self.identity.sign(self._signed(self.me, masked)) + self.exchange + masked
        if not self._memory.exists():
            private_write(self._memory, data)
        elif self._memory.read_bytes() != data:
            raise Refused(
                "sum",
                f"{self.me} gave other counts to this exchange before; both together would show how they differ",
                hint="a second exchange needs a folder of another name, at every site",
            )
        (self.folder / f"{self.me}{COUNTS}").write_bytes(data)

    def result(self) -> dict[str, Any]:
        """The pooled curve's AUROC, written with it to ``pooled_roc.json`` and ``.png``;
        before all counts are there, who is missing.

        Raises :class:`ProtocolError` naming the site whose file is malformed, not its own, or for another exchange.
        """
        said: dict[str, Any] = {"sites": list(self.sites), "fingerprint": self.fingerprint, "missing": self.missing}
        if said["missing"]:
            return said | {"auroc": None, "bound": None}
        opened = self._sum.open({name: self._read(site) for name, site in self.sites.items()})
        curves = histogram.pooled_roc(histogram.from_sum(fixed.decode(opened, 0), len(self.classes)))
        histogram.write_pooled(curves, self.classes, len(self.sites), self.folder)
        plot_pooled(self.folder)
        auroc, bound = histogram.pooled_macro(curves)
        return said | ({"auroc": None, "bound": None} if math.isnan(auroc) else {"auroc": auroc, "bound": bound})

    def _read(self, site: Member) -> bytes:
        """The masked counts of ``site``."""
        path, size = self.folder / f"{site.name}{COUNTS}", 96 + 8 * len(self.classes) * 2 * histogram.BINS
        with path.open("rb") as f:
            data = f.read(size + 1)
        if len(data) != size:
            raise ProtocolError(f"{path}: is not {size} bytes long", hint=f"copy it again from {site.name}")
        if data[64:96] != self.exchange:
            raise ProtocolError(
                f"{path}: belongs to another exchange than {self.fingerprint}",
                hint="all sites need the same model, the same public files and a folder of the same name",
            )
        verify(site, self._signed(site.name, data[96:]), data[:64])
        return data[96:]

    def _exchange(self, m: ModelMeta) -> bytes:
        """What masks and signatures are bound to."""
        fields = [
            self.folder.resolve().name,
            m.run_id,
            m.manifest_hash,
            m.task,
            *m.classes,
            f"{histogram.BINS} {histogram.LIMIT}",
        ]
        fields += [f"{s.name} {s.sign} {s.seal}" for s in self.sites.values()]
        return framing.digest(DOMAIN, *(f.encode() for f in fields))

    def _signed(self, name: str, masked: bytes) -> bytes:
        return framing.framed(DOMAIN, self.exchange, name.encode(), masked)


def _sites(folder: Path) -> dict[str, Member]:
    """The sites of the public files in ``folder``, by name."""
    found = {
        p.name.removesuffix(PUBLIC): read_public(p, role="custodian", verify="off")
        for p in sorted(folder.glob(f"*{PUBLIC}"))
    }
    for name, site in found.items():
        if site.name != name:
            raise FocalError(
                f"{folder / (name + PUBLIC)}: is the public file of '{site.name}'",
                hint="name it as 'focal keys new' did",
            )
    if len(found) < LEAST:
        raise FocalError(
            f"{folder}: {len(found)} public files; counts are added up over {LEAST} sites or more",
            hint="put the NAME.public.json of every site there: with two, each would read the other's counts",
        )
    if len({site.seal for site in found.values()}) < len(found):
        raise FocalError(f"{folder}: two sites have one key", hint="each site makes its own: focal keys new")
    return found
