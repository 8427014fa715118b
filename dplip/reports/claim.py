"""What may be claimed of a run: one sentence, and the list of NIST SP 800-226."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dplip.reports.rounded import at_most, delta_at_most, number, plain

PRIVATE, NOT_PRIVATE, UNKNOWN = "private", "not private", "unknown"

RELATIONS = {
    "add_remove": ("adding or removing one example", "one of them has one example more than the other"),
    "replace_one": ("replacing one example by another", "they have as many examples, and differ in one of them"),
}
ACCOUNTANTS = {
    "rdp": "Rényi divergences, composed over the steps (Mironov, Talwar, Zhang 2019)",
    "prv": "numerical composition of privacy losses (Gopi, Lee, Wutschitz 2021), or Rényi divergences where lower",
    "pld": "privacy loss distributions (Doroshenko et al. 2022), or Rényi divergences where lower",
}


@dataclass(frozen=True)
class Claim:
    """The claim of a report.

    Attributes:
        status: ``PRIVATE``, ``NOT_PRIVATE`` or ``UNKNOWN``.
        sentence: the claim.
        epsilon: what it claims, as text: of everything that was spent in the folder.
    """

    status: str
    sentence: str
    epsilon: str


def claim(report: Mapping[str, Any], spent: Mapping[str, Any]) -> Claim:
    """The claim about everything that was released in a folder: by this run and by the earlier ones there.

    Args:
        report: the report of the last run.
        spent: what :func:`dplip.records.spends.spends` finds in the folder.
    """
    privacy, runs = report["privacy"], spent["runs"]
    delta, change = delta_at_most(privacy["delta"]), RELATIONS[privacy["neighboring"]][0]
    alone = f"This run alone spent ε = {at_most(privacy['epsilon'])} at δ = {delta}."
    if privacy["seeded"] or any(run.get("seeded") for run in runs):
        which = "The run" if privacy["seeded"] else "Another run in this folder"
        return Claim(
            NOT_PRIVATE,
            f"These weights are not private. {which} was seeded: whoever knows the seed can repeat its draws and take "
            "the noise away.",
            "none",
        )
    if spent["epsilon"] is None:
        return Claim(
            UNKNOWN, f"What was spent in this folder is not known, so nothing is claimed: {spent['problem']}.", "?"
        )
    epsilon = at_most(spent["epsilon"])
    if number(spent["epsilon"]) == float("inf"):
        return Claim(NOT_PRIVATE, "These weights are not private: steps were taken without noise.", epsilon)
    what = "These weights, with all that the training released, are"
    if len(runs) > 1:
        others = "another run" if len(runs) == 2 else f"{len(runs) - 1} other runs"
        what = f"These weights and what {others} in this folder released are together"
    sentence = (
        f"{what} (ε, δ)-differentially private with ε = {epsilon} and δ = {delta}: {change} in the training data "
        "changes the probability of no outcome by more than a factor of e^ε, but for δ."
    )
    said = [sentence, *([alone] if len(runs) > 1 else []), *provisos([privacy, *runs])]
    return Claim(PRIVATE, " ".join(said), epsilon)


def provisos(runs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What a claim rests on besides, for runs that took a part of it on trust."""
    runs = list(runs)
    trusted = sorted({str(run["trusted_optimizer"]) for run in runs if run.get("trusted_optimizer")})
    if trusted:
        yield (
            f"This assumes that the optimizer ({', '.join(trusted)}), which nothing checked, moves the weights by the "
            "noisy gradient alone."
        )
    if any(run.get("distributed") for run in runs):
        yield "This was one of several processes: what the others released on the same data is spent besides."


def accounting(privacy: Mapping[str, Any], spent: Mapping[str, Any]) -> str:
    """How the steps of this run were composed, and those of the folder if in another way."""
    alone, together = privacy["accountant"], spent.get("accountant")
    more = f"; for this folder: {ACCOUNTANTS[together]}" if together not in (None, alone) else ""
    return ACCOUNTANTS[alone] + more


def guarantee(report: Mapping[str, Any], spent: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What NIST SP 800-226 asks of a claim, point by point: its name, and what holds for this run."""
    privacy = report["privacy"]
    size, delta = int(privacy["public_size"]), number(privacy["delta"])
    fixed = privacy.get("sampling", "poisson") == "fixed_size"
    batches = "of a fixed size, drawn without replacement" if fixed else "Poisson, each example on its own"
    releases = privacy.get("releases", [])
    together = "not known" if spent["epsilon"] is None else at_most(spent["epsilon"])
    points = [
        (
            "Unit of privacy",
            "One example: one item of the training data. Who contributed k of them is promised less: kε, at "
            "k e^((k-1)ε) δ.",
        ),
        ("Neighbouring data sets", f"Two data sets are neighbours if {RELATIONS[privacy['neighboring']][1]}."),
        ("Public facts", f"The number of examples ({size:,}) was treated as public, and so were all settings below."),
        (
            "Trust model",
            "Central: whoever trains sees the data and is trusted. The attacker may see the final weights and the "
            "noisy gradient of every step, knows the settings and every other example, and has any computing power.",
        ),
        (
            "Parameters",
            f"ε = {at_most(privacy['epsilon'])} for this run, {together} for this folder, "
            f"δ = {delta_at_most(delta)} (δ times the number of examples: {plain(delta * size)}). "
            f"{privacy['steps']} steps, "
            f"noise multiplier {plain(privacy['noise_multiplier'])}, sample rate {plain(privacy['sample_rate'])}; "
            f"batches {batches}."
            + (
                f" Before the first step {len(releases)} release of the inputs' mean, counted in ε." if releases else ""
            ),
        ),
        ("Accounting", f"{accounting(privacy, spent)}. Every epsilon is an upper bound, and rounded up here."),
        (
            "Tuning",
            "Not accounted: if settings were chosen by looking at these data, by runs elsewhere or by their results, "
            "that is spent besides. Runs in this folder are counted.",
        ),
        (
            "Sensitivity",
            "Proved for each parameter from the layers of the model, with the rounding of its sums; no gradient is "
            "clipped. The optimizer was "
            + (
                "one that nothing checked (" + str(privacy["trusted_optimizer"]) + ")."
                if privacy.get("trusted_optimizer")
                else "checked."
            ),
        ),
        (
            "Randomness",
            "Seeded, and so repeatable: not private."
            if privacy["seeded"]
            else "Batches and noise are drawn afresh, from the operating system's entropy; no seed is kept.",
        ),
        (
            "Floating point",
            (
                "The noise is an exact discrete Gaussian (OpenDP)."
                if privacy.get("secure")
                else "The noise is drawn in floating point by a statistical generator: low-order bits of a noisy "
                "gradient can betray an input to noise, so noisy gradients should not be published. Exact noise: "
                "secure=True."
            )
            + (f" Steps in {privacy['autocast']}." if privacy.get("autocast") else ""),
        ),
        (
            "Side channels",
            "Not protected: running time, memory, the number of physical batches, logs of other programs, errors of a "
            "data set's own code.",
        ),
        (
            "Held-out data",
            "Figures of accuracy and of certificates are exact, on held-out data that ε does not cover. If those data "
            "are private, do not publish them.",
        ),
    ]
    if privacy.get("distributed"):
        points.append(
            ("Several processes", "This was one of several: their models must not be averaged, or chosen among.")
        )
    return points


NOT_SHOWN = (
    ("Loss and accuracy on the training data", "computed on private data; ε does not cover them"),
    ("Gradients before noise, their norms, and how many were scaled", "computed on private data"),
    ("Sizes of the batches that were drawn, and counts of labels", "computed on private data"),
    ("Running time", "it depends on the sizes of private batches"),
)
"""What the report leaves out, and why."""
