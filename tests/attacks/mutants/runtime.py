"""Mutants of secret randomness, of threads and of processes."""

from attacks.mutants.mutant import mutant

RANDOMNESS = [
    mutant(
        "masks that go by place, from a state that others may know",
        "training/gradient_monitor.py",
        "if torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None:",
        "if False:",
        "runtime/test_secret_masks.py::test_masks_are_fresh_and_the_global_state_stays",
    ),
    mutant(
        "masks of a seed of 32 bits",
        "runtime/secret.py",
        "torch.default_generator.set_state(_state(bits))",
        "torch.default_generator.manual_seed(int(bits.random_raw()))",
        "runtime/test_secret_masks.py::test_the_whole_state_of_torchs_generator_is_secret",
    ),
    mutant(
        "masks of dropout by the processor's generator of 31 bits",
        "runtime/secret.py",
        "if func in _AXES and",
        "if False and",
        "runtime/test_secret_masks.py::test_dropout_does_not_go_by_torchs_generator",
    ),
    mutant(
        "other masks where activations are computed again",
        "runtime/secret.py",
        " and _top_saved_tensors_default_hooks(True) is None:",
        ":",
        "runtime/test_secret_masks.py::test_what_is_computed_again_has_the_mask_that_it_had",
    ),
    mutant(
        "a secret state left behind for all to read",
        "runtime/secret.py",
        "            generator.set_state(state)\n",
        "            pass\n",
        "runtime/test_secret_masks.py::test_masks_are_fresh_and_the_global_state_stays",
    ),
    mutant(
        "a secret state left behind by a pass that failed",
        "training/gradient_monitor.py",
        "with_kwargs=True, always_call=True",
        "with_kwargs=True",
        "runtime/test_secret_masks.py::test_a_pass_that_fails_gives_the_global_state_back",
    ),
    mutant(
        "augmentation that goes by place, from a state that others may know",
        "sampling/loader.py",
        "with lent_to_readers(self._chance):",
        "if True:",
        "sampling/test_secret_draws.py::test_augmentation_follows_no_known_seed",
    ),
    mutant(
        "a model that draws from numpy's generator",
        "propagation/probe.py",
        "if after[1:] != before[1:]:",
        "if False:",
        "runtime/test_secret_masks.py::test_a_model_that_draws_from_other_generators_is_refused",
    ),
    mutant(
        "a copied loader with the same batches to come",
        "runtime/secret.py",
        "return (type(self), (None, *self._key))",
        "return __import__('copyreg')._reduce_ex(self, 1)",
        "sampling/test_secret_draws.py::test_a_copied_loader_draws_other_batches",
    ),
    mutant(
        "a copied loader of one seed",
        "runtime/secret.py",
        '        self._require_own("a copy would repeat its draws")\n',
        "",
        "sampling/test_secret_draws.py::test_a_seeded_loader_is_not_copied",
    ),
    mutant(
        "a forked process with the same batches and masks to come",
        "runtime/secret.py",
        "if self._process != os.getpid():",
        "if False:",
        "sampling/test_secret_draws.py::test_a_forked_process_draws_other_batches",
    ),
    mutant(
        "one batch that two processes go on with",
        "sampling/loader.py",
        "if process != os.getpid():",
        "if False:",
        "sampling/test_secret_draws.py::test_an_iteration_that_had_begun_does_not_go_on_in_a_fork",
    ),
    mutant(
        "several processes, as the launcher says, unseen",
        "runtime/processes.py",
        "if count.isdigit() and int(count) > 1:",
        "if False:",
        "runtime/test_processes.py::test_one_of_several_processes_is_refused",
    ),
    mutant(
        "a process group that comes up later unseen",
        "runtime/processes.py",
        "        if size > 1:",
        "        if False:",
        "runtime/test_processes.py::test_a_group_that_comes_up_later_is_seen",
    ),
    mutant(
        "processes looked at only at first",
        "training/optimizer.py",
        "            self._process.require()\n",
        "",
        "runtime/test_processes.py::test_a_step_is_refused_once_there_are_other_processes",
    ),
    mutant(
        "a forked optimizer whose steps no budget counts",
        "runtime/processes.py",
        "if self._process != os.getpid():",
        "if False:",
        "runtime/test_processes.py::test_a_fork_of_what_was_made_takes_no_step",
    ),
]

READ_BEFORE_TRAINING_AND_THREADS = [
    mutant(
        "a fixed front end is read under a global seed",
        "training/feature_extractor.py",
        "evaluation(extractor), lent_to_readers(Secret(seed, 3)), bar:",
        "evaluation(extractor), bar:",
        "sampling/test_secret_draws.py::test_augmentation_that_is_read_before_training_follows_no_known_seed",
    ),
    mutant(
        "the mean of the inputs is read under a global seed",
        "training/mean_release.py",
        "with evaluation(before), lent_to_readers(noise.masks):",
        "with evaluation(before):",
        "sampling/test_secret_draws.py::test_augmentation_that_is_read_before_training_follows_no_known_seed",
    ),
    mutant(
        "two threads are lent secret states at once",
        "runtime/secret.py",
        "    with _turn():",
        "    if True:",
        "runtime/test_threads_and_forks.py"
        "::test_two_threads_have_masks_of_their_own_and_leave_the_global_state_as_it_was",
    ),
    mutant(
        "a fork waits for a thread that it does not have",
        "runtime/secret.py",
        "_TURNS.__setitem__(0, threading.RLock())",
        "None",
        "runtime/test_threads_and_forks.py::test_a_fork_has_its_own_turn",
    ),
    mutant(
        "two threads take the same draws",
        "noise/gaussian.py",
        "        with self._one_taker:",
        "        if True:",
        "runtime/test_threads_and_forks.py::test_one_thread_at_a_time_takes_from_a_source",
    ),
]
