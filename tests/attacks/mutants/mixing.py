"""Mutants of what a pass is held against: public passes, whatever the number of examples."""

from attacks.mutants.mutant import mutant

ZOO = "separation/test_zoo.py::test_what_mixes_is_refused"

WHATEVER_THE_NUMBER = [
    mutant(
        "a pass compared with public passes of its own number of examples alone",
        "sensitivities/enforced_model.py",
        "        if self._before == guards_of(self.model):",
        "        if self._try(watch.examples, ())[1].entries == watch.signature.entries:\n"
        "            return None\n"
        "        if self._before == guards_of(self.model):",
        f"{ZOO}[another activation for large batches]",
    ),
    mutant(
        "gradients that go elsewhere in large batches",
        "separation/watch.py",
        "(mark.origin, value.requires_grad, torch.is_grad_enabled())",
        "(mark.origin, False, False)",
        f"{ZOO}[no graph of a value in large batches]",
    ),
    mutant(
        "values detached in large batches",
        "separation/watch.py",
        ' or operator.name == "detach"',
        "",
        f"{ZOO}[a layer without gradient for single examples behind noise]",
    ),
    mutant(
        "two of one type for two of another",
        "separation/watch.py",
        "keys += type(value), value",
        "keys.append(value)",
        "separation/test_zoo.py::test_numbers_of_other_types_are_other_numbers",
    ),
    mutant(
        "the copy of a parameter that is no one's where there is one example",
        "nn/bounded/use.py",
        "    if watch is not None:\n        watch.own(copies)",
        "    if watch is not None and examples > 1:\n        watch.own(copies)",
        "separation/test_zoo.py::test_batches_of_one_are_as_others",
    ),
]
