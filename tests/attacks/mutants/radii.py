"""Mutants of what a run says it learned."""

from attacks.mutants.mutant import mutant

LEARNED = [
    mutant(
        "movements added up in units that change",
        "training/learned.py",
        "alpha=1 / stds[name])",
        "alpha=1.0)",
        "training/test_learned.py::test_noise_alone_is_standard_normal_whatever_its_deviations_do",
    ),
    mutant(
        "weights drawn back taken for noise",
        "training/learned.py",
        "abs(self.deviations) >= TOLD",
        "self.deviations >= TOLD",
        "training/test_learned.py::test_weights_that_are_drawn_back_to_where_they_were_are_told_from_a_walk",
    ),
    mutant(
        "a run that learned nothing ends in silence",
        "training/trainer.py",
        "        self.optimizer.learned().warn()\n",
        "",
        "training/test_learned.py::test_the_trainer_warns_at_the_end_and_reports",
    ),
]
