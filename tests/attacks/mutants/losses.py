"""Mutants of losses and of their declared gradients."""

from attacks.mutants.mutant import Mutant, mutant

SUM = "values.sum() if reduction"

LOSSES = [
    mutant(
        "a mean over the batch",
        "losses/base.py",
        SUM,
        "values.mean() if reduction",
        "losses/test_values.py::test_the_sum_is_the_sum_of_the_examples",
    ),
    Mutant(
        "sqrt 2 of the cross-entropy missing",
        "losses",
        (
            ("l1=2.0, l2=math.sqrt(2.0), linf=1.0", "l1=2.0, l2=1.0, linf=1.0"),
            ("return (rows / excess).reshape(gradient.shape)", "return rows.reshape(gradient.shape)"),
        ),
        "audit/test_gradient.py::test_the_search_finds_long_gradients_and_none_beyond_the_declared -k orthogonal",
    ),
    Mutant(
        "loss constant without temperature",
        "losses",
        (
            (
                'F.cross_entropy(outputs * self.temperature, targets, reduction="none") / self.temperature',
                'F.cross_entropy(outputs * self.temperature, targets, reduction="none")',
            ),
            ("return (rows / excess).reshape(gradient.shape)", "return rows.reshape(gradient.shape)"),
        ),
        "losses/test_declared_norms.py::test_no_output_and_target_exceed_the_declared_norms -k cross_entropy",
    ),
    mutant(
        "one NaN poisons the batch",
        "losses/base.py",
        "rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, torch.zeros_like(rows))",
        "pass",
        "losses/test_values.py::test_an_example_whose_gradient_is_nan_sends_nothing_back",
    ),
    mutant(
        "normalised by the norm of the batch",
        "losses/base.py",
        "torch.linalg.vector_norm(rows, 2, 1, keepdim=True).clamp_min(FLOOR)",
        "torch.linalg.vector_norm(rows).clamp_min(FLOOR)",
        "losses/test_values.py::test_an_example_is_treated_alike_whatever_else_is_in_the_batch",
    ),
]
