"""OpenFHE's threshold key generation gives its secrets away: the reproduction for docs/security-notes.md.

    pip install openfhe numpy
    python scripts/openfhe_leak.py           # the leak and the fix, CKKS, BFV and BGV
    python scripts/openfhe_leak.py --also    # what else was measured, CKKS

1. Three parties make a joint multiplication key with the calls of OpenFHE's own example (threshold-fhe-5p.cpp).
   An observer is given serialized messages only. By one addition and one division it has every secret share, and
   from the sums alone the joint secret.
2. The same with a one-time secret u_i per party (Mouchet et al., PoPETs 2021, protocol 2).
   The key works, the attack finds nothing.

Everything is made with OpenFHE calls. numpy only reads the numbers ("limbs": a polynomial modulo one
prime, in OpenFHE's evaluation form) out of the bytes that `Serialize` writes, and writes them back where
Python has no SetAVector / SetBVector.
"""

from __future__ import annotations

import functools
import itertools
import os
import struct
import sys

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before openfhe is loaded: its threads spin against each other on small machines

import numpy as np  # noqa: E402
import openfhe  # noqa: E402

N = 1 << 14
PARTIES = 3

# ----------------------------------------------------------------- OpenFHE


def context(kind: str = "CKKS"):
    p = getattr(openfhe, f"CCParams{kind}RNS")()
    p.SetSecurityLevel(openfhe.HEStd_128_classic)
    p.SetRingDim(N)
    p.SetMultiplicativeDepth(2)
    if kind == "CKKS":
        p.SetScalingModSize(45)
    else:
        p.SetPlaintextModulus(65537)
    p.SetKeySwitchTechnique(openfhe.HYBRID)
    cc = openfhe.GenCryptoContext(p)
    for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE, openfhe.ADVANCEDSHE, openfhe.MULTIPARTY):
        cc.Enable(feature)
    return cc


def key_pairs(cc) -> list:
    pairs = [cc.KeyGen()]
    while len(pairs) < PARTIES:
        pairs.append(cc.MultipartyKeyGen(pairs[-1].publicKey))
    return pairs


def documented(cc, pairs: list) -> dict:
    """The multiplication key as in threshold-fhe-5p.cpp. Returns what is sent, serialized."""
    tag, secret = pairs[-1].publicKey.GetKeyTag(), [p.secretKey for p in pairs]
    round1 = [cc.KeySwitchGen(secret[0], secret[0])]
    round1 += [cc.MultiKeySwitchGen(s, s, round1[0]) for s in secret[1:]]  # (a, b_i = P g s_i - a s_i + e)
    joint = functools.reduce(
        lambda x, y: cc.MultiAddEvalKeys(x, y, tag), round1
    )  # (a, b = sum b_i): "evalMultAB", every party needs it
    round2 = [cc.MultiMultEvalKey(s, joint, tag) for s in secret]  # (A_i = a s_i + e', B_i = b s_i + e'')
    final = functools.reduce(
        lambda x, y: cc.MultiAddEvalMultKeys(x, y, tag), round2
    )  # (sum A_i, sum B_i): the evaluation key, public
    return {
        "round1": list(map(dump, round1)),
        "joint": dump(joint),
        "round2": list(map(dump, round2)),
        "final": dump(final),
    }


def fixed(cc, pairs: list) -> dict:
    """The same key with a one-time secret u_i per party. Returns what is sent, serialized."""
    tag, secret = pairs[-1].publicKey.GetKeyTag(), [p.secretKey for p in pairs]
    once = [cc.KeyGen().secretKey for _ in pairs]  # u_i: erased after round 2
    common = cc.KeySwitchGen(secret[0], once[0])  # (a, h0_1): gives a; better expanded from a public seed
    round1 = []
    for i, (s, u) in enumerate(zip(secret, once, strict=True)):
        h0 = half(cc.MultiKeySwitchGen(s, u, common) if i else common, "B")  # P g s_i - a u_i + e
        h1 = half(cc.MultiMultEvalKey(s, common, tag), "A")  # a s_i + e'; its B half is never sent
        round1.append(eval_key(common, h1, h0))
    joint = functools.reduce(lambda x, y: cc.MultiAddEvalMultKeys(x, y, tag), round1)  # (h1, h0): both halves summed
    round2 = []
    for s, u in zip(secret, once, strict=True):
        by_s, by_u = cc.MultiMultEvalKey(s, joint, tag), cc.MultiMultEvalKey(u, joint, tag)  # neither is sent as it is
        b = add(half(by_s, "B"), add(half(by_u, "A"), half(by_s, "A"), -1))  # s_i h0 + (u_i - s_i) h1 + e''
        round2.append(eval_key(common, half(joint, "A"), b))
    final = functools.reduce(lambda x, y: cc.MultiAddEvalKeys(x, y, tag), round2)  # (h1, sum b_i)
    return {
        "round1": list(map(dump, round1)),
        "joint": dump(joint),
        "round2": list(map(dump, round2)),
        "final": dump(final),
    }


def multiplies(cc, kind: str, pairs: list, final: bytes) -> float:
    """Largest error of a product under the joint key, relinearized with ``final`` and decrypted by all parties."""
    key = openfhe.DeserializeEvalKeyString(final, openfhe.BINARY)
    key.SetKeyTag(pairs[-1].publicKey.GetKeyTag())
    cc.InsertEvalMultKey([key], key.GetKeyTag())
    plain = cc.MakeCKKSPackedPlaintext([0.5, -1.0, 0.25]) if kind == "CKKS" else cc.MakePackedPlaintext([3, -5, 7])
    ct = cc.EvalMult(*[cc.Encrypt(pairs[-1].publicKey, plain)] * 2)
    shares = [
        (cc.MultipartyDecryptMain if i else cc.MultipartyDecryptLead)([ct], p.secretKey)[0] for i, p in enumerate(pairs)
    ]
    out = cc.MultipartyDecryptFusion(shares)
    out.SetLength(3)
    got, wanted = (
        (out.GetRealPackedValue(), [0.25, 1.0, 0.0625]) if kind == "CKKS" else (out.GetPackedValue(), [9, 25, 49])
    )
    return float(np.abs(np.subtract(got, wanted)).max())


# ----------------------------------------------------------------- limbs
# A polynomial is a list of (modulus, N residues), as it stands in the bytes:
# an EvalKey is its digits' A polynomials, then their B.


def dump(thing) -> bytes:
    return bytes(openfhe.Serialize(thing, openfhe.BINARY))


def places(data: bytes) -> list[list[tuple[int, int]]]:
    """(modulus, offset) of every limb: N as 8 bytes behind a cereal pointer header, N residues, the modulus."""
    polynomials, at = [], 0
    while (at := data.find(struct.pack("<Q", N), at)) >= 0:
        body, end = at + 8, at + 8 + 8 * N
        q = struct.unpack_from("<Q", data, end)[0] if end + 8 <= len(data) else 0
        if b"\x00\x00\x00\x40\x01" in data[at - 9 : at] and q % (2 * N) == 1:
            if not polynomials or q == polynomials[0][0][0]:  # the first prime again: the next polynomial
                polynomials.append([])
            polynomials[-1].append((q, body))
            at = end
        else:
            at += 1
    return polynomials


def read(data: bytes) -> list[list[tuple[int, np.ndarray]]]:
    return [[(q, np.frombuffer(data, "<u8", N, offset)) for q, offset in polynomial] for polynomial in places(data)]


def half(key, which: str) -> list:
    polynomials = read(key if isinstance(key, bytes) else dump(key))
    digits = len(polynomials) // 2
    return polynomials[:digits] if which == "A" else polynomials[digits:]


def eval_key(template, a: list, b: list):
    """An EvalKey (a, b): in C++ SetAVector and SetBVector."""
    data = bytearray(dump(template))
    for spots, polynomial in zip(places(bytes(data)), a + b, strict=True):
        for (_, offset), (_, limb) in zip(spots, polynomial, strict=True):
            data[offset : offset + 8 * N] = limb.astype("<u8").tobytes()
    return openfhe.DeserializeEvalKeyString(bytes(data), openfhe.BINARY)


def add(x: list, y: list, sign: int = 1) -> list:
    """x + y or x - y of two lists of polynomials (residues < 2^61, so nothing overflows)."""
    signed = lambda limb, q: limb if sign > 0 else np.uint64(q) - limb  # noqa: E731
    return [
        [(q, (u + signed(v, q)) % np.uint64(q)) for (q, u), (_, v) in zip(f, g, strict=True)]
        for f, g in zip(x, y, strict=True)
    ]


@functools.cache
def inverse_twiddles(q: int) -> np.ndarray:
    """Inverse powers, bit-reversed, of the root that OpenFHE's transform uses:
    the smallest primitive 2N-th root of unity."""
    root = next(r for x in itertools.count(2) if pow(r := pow(x, (q - 1) // (2 * N), q), N, q) == q - 1)
    square = root * root % q
    inverse = pow(min(itertools.accumulate(range(N - 1), lambda r, _: r * square % q, initial=root)), -1, q)
    powers = list(itertools.accumulate(range(N - 1), lambda r, _: r * inverse % q, initial=1))
    bits = N.bit_length() - 1
    return np.array([powers[int(f"{i:0{bits}b}"[::-1], 2)] for i in range(N)], dtype=object)


def coefficients(limb: np.ndarray, q: int) -> np.ndarray:
    """Evaluation form -> signed coefficients modulo q (inverse NTT, Longa and Naehrig 2016, algorithm 2),
    in Python integers."""
    a, w = limb.astype(object), inverse_twiddles(q)
    blocks = N // 2
    while blocks:
        v = a.reshape(blocks, 2, -1)
        low, high = v[:, 0], v[:, 1]
        a = np.stack([(low + high) % q, (low - high) * w[blocks : 2 * blocks, None] % q], axis=1).reshape(N)
        blocks //= 2
    a = a * pow(N, -1, q) % q
    return (a - q * (a > q // 2)).astype(np.int64)


# ----------------------------------------------------------------- the observer


def recover(primes: int, *messages: list) -> tuple[np.ndarray, int]:
    """The secret in the sum of ``messages`` (each the polynomials of all digits), and the largest noise coefficient.

    Digit 0 only. Modulo the last prime (of P) g_0 = 0, so the sum is the noise alone. Modulo q_0 it is P s + noise.
    """
    total = functools.reduce(add, messages)[0]
    q, p = total[0][0], np.prod([m for m, _ in total[primes:]], dtype=object)
    noise = coefficients(total[-1][1], total[-1][0])
    s = (coefficients(total[0][1], q).astype(object) - noise) * pow(int(p), -1, q) % q
    return (s - q * (s > q // 2)).astype(np.int64), int(np.abs(noise).max())


def smallest_combination(messages: list) -> float:
    """Over all sums with factors -1, 0, 1: the smallest one's largest coefficient,
    as a part of the modulus, and at most 1/2.

    Digit 0 modulo the last prime, the first 64 coefficients. The smallest of thousands of uniform
    polynomials comes to about 0.4.
    """
    columns = np.array([coefficients(m[0][-1][1], m[0][-1][0])[:64] / m[0][-1][0] for m in messages])
    factors = np.array([f for f in itertools.product((0, 1, -1), repeat=len(messages)) if any(f)], dtype=float)
    sums = factors @ columns
    return float(np.abs(sums - np.rint(sums)).max(axis=1).min())


def messages(sent: dict) -> list:
    """The halves that the parties sent, each once: what is public already (a, or the summed h1) is left out."""
    halves = [half(data, which) for data in sent["round1"] + sent["round2"] for which in "AB"]
    seen: dict[bytes, list] = {}
    count: dict[bytes, int] = {}
    for polynomials in halves:
        name = polynomials[0][0][1].tobytes()
        seen[name], count[name] = polynomials, count.get(name, 0) + 1
    return [polynomials for name, polynomials in seen.items() if count[name] == 1]


def attack(pairs: list, sent: dict) -> list[tuple[str, int, int]]:
    """(whose secret, coefficients recovered, largest "noise"). Every two halves of a party's two messages
    are tried, the best is told.

    The secret keys are read only to compare with.
    """
    primes = len(read(dump(pairs[0].publicKey))[0])  # of Q
    shares = [coefficients(limb, q) for q, limb in (read(dump(p.secretKey))[0][0] for p in pairs)]
    cases = [(f"share of party {i + 1}", sent["round1"][i], sent["round2"][i], s) for i, s in enumerate(shares)]
    cases.append(("the joint secret", sent["joint"], sent["final"], sum(shares)))
    told = []
    for name, first, second, true in cases:
        parts = [half(first, "A"), half(first, "B"), half(second, "A"), half(second, "B")]
        found = [recover(primes, x, y) for x, y in itertools.combinations(parts, 2)]
        count, noise = max((int((s == true).sum()), -noise) for s, noise in found)
        told.append((name, count, -noise))
    return told


# ----------------------------------------------------------------- what else was measured


def error(a: tuple, b: tuple, secret: tuple, sign: int = 1) -> np.ndarray:
    """Coefficients of b + sign * a * secret, limbs of one prime."""
    q = a[0]
    return coefficients(
        ((b[1].astype(object) + sign * a[1].astype(object) * secret[1].astype(object)) % q).astype(np.uint64), q
    )


def also() -> dict[str, float]:
    """CKKS. Every figure is a measurement on this machine's OpenFHE."""
    cc = context()
    pairs = key_pairs(cc)
    s1, s2, tag, out = pairs[0].secretKey, pairs[1].secretKey, pairs[-1].publicKey.GetKeyTag(), {}
    secret, public, first = read(dump(s2))[0], read(dump(pairs[1].publicKey)), read(dump(pairs[0].publicKey))
    primes = len(secret)

    key = cc.KeySwitchGen(s2, s2)
    a, b = half(key, "A")[0], half(key, "B")[0]  # digit 0, read modulo the last prime of Q, where g_0 = 0
    product = half(cc.MultiMultEvalKey(s2, key, tag), "A")[0]
    own = [(q, (x + np.uint64(q) - y) % np.uint64(q)) for (q, x), (_, y) in zip(public[0], first[0], strict=True)]
    out["sigma, public key"] = float(error(public[1][0], own[0], secret[0]).std())
    out["sigma, KeySwitchGen"] = float(error(a[primes - 1], b[primes - 1], secret[primes - 1]).std())
    out["sigma, MultiMultEvalKey"] = float(error(a[0], product[0], secret[0], -1).std())

    zeros = [[(q, np.zeros(N, dtype=np.uint64)) for q, _ in f] for f in half(key, "A")]
    answer = cc.MultiKeySwitchGen(s2, s2, eval_key(key, zeros, zeros))
    found, _ = recover(primes, half(answer, "B"))
    out["coefficients from one answer to a = 0"] = float((found == coefficients(secret[0][1], secret[0][0])).sum())

    ct = cc.Encrypt(pairs[-1].publicKey, cc.MakeCKKSPackedPlaintext([0.5]))
    share = read(dump(cc.MultipartyDecryptMain([ct], s2)[0]))[0]
    out["log2 sigma, decryption share"] = float(np.log2(error(read(dump(ct))[1][0], share[0], secret[0], -1).std()))

    indices = [1, 2, -1, 4]
    cc.EvalSumKeyGen(s1)
    cc.EvalRotateKeyGen(s1, indices)
    made = (cc.GetEvalAutomorphismKeyMap(s1.GetKeyTag()), cc.GetEvalSumKeyMap(s1.GetKeyTag()))
    digits = len(half(key, "A"))

    def by_key(
        key_map,
    ) -> list:  # in a serialized map the keys stand by rising automorphism index; every key has digits A, then digits B
        polynomials = read(dump(key_map))
        return [
            (polynomials[i : i + digits], polynomials[i + digits : i + 2 * digits])
            for i in range(0, len(polynomials), 2 * digits)
        ]

    rotations = by_key(cc.MultiEvalAtIndexKeyGen(s2, made[0], indices, tag))
    sums = by_key(cc.MultiEvalSumKeyGen(s2, made[1], tag))
    assert (
        rotations[0][0][0][0][1] == sums[0][0][0][0][1]
    ).all()  # index 5 (rotation by 1) is the lowest of both: the same a
    twice = add(rotations[0][1], sums[0][1], -1)[0][-1]
    out["sigma, one rotation asked twice, difference"] = float(coefficients(twice[1], twice[0]).std())
    publics = {x[0][0][1].tobytes() for x, _ in by_key(made[0])}
    out["rotation and sum keys of party 1"] = float(len(by_key(made[0])))
    out["different a among them"] = float(len(publics))
    # party 2's rotation keys and their a, beside what it sends in rounds 1 and 2 (documented:
    # never both halves of the known leak)
    rest = [x for pair in rotations[:3] for x in pair]
    sent, repaired = documented(cc, pairs), fixed(cc, pairs)
    (_, b1), (a2, b2) = [[half(sent[r][1], w) for w in "AB"] for r in ("round1", "round2")]
    out["smallest sum, documented b_i, B_i and rotation keys"] = smallest_combination([b1, b2, *rest])
    out["smallest sum, documented A_i, B_i and rotation keys"] = smallest_combination([a2, b2, *rest])
    (h1, h0), (_, b) = [[half(repaired[r][1], w) for w in "AB"] for r in ("round1", "round2")]
    out["smallest sum, h0_i, h1_i, b_i and rotation keys"] = smallest_combination([h0, h1, b, *rest])
    return out


def main() -> int:
    if "--also" in sys.argv:
        for name, value in also().items():
            print(f"{name}: {value:.6g}")
        return 0
    for kind in ("CKKS", "BFV", "BGV"):
        cc = context(kind)
        for title, make in (("documented calls", documented), ("one-time secret u_i", fixed)):
            pairs = key_pairs(cc)
            sent = make(cc, pairs)
            print(f"{kind}, {title}: a product errs by {multiplies(cc, kind, pairs, sent['final']):.0e}")
            for name, count, noise in attack(pairs, sent):
                print(
                    f"  {name}: "
                    f"{count} of {N} coefficients recovered (largest noise coefficient 2^{np.log2(noise):.1f})"
                )
            least = smallest_combination(messages(sent))
            print(
                "  all sums of the parties' messages with factors -1, 0, 1: "
                f"the smallest is 2^{np.log2(least):.1f} of the modulus"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
