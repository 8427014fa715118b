"""Mutants of ledgers, checkpoints, reports and the folder of a run."""

from attacks.mutants.mutant import mutant

RECORDS = [
    mutant(
        "ledger line dropped",
        "records/run_folder.py",
        "            self._ledger.append(event)\n",
        "            pass\n",
        "training/test_files_of_a_run.py::test_the_ledger_holds_a_step_before_its_noise_is_drawn",
    ),
    mutant(
        "ledger line written when it suits",
        "training/durable_run.py",
        "            self._folder.append(event)\n",
        "            if self._accountant.num_steps % 2:\n                self._folder.append(event)\n",
        "training/test_files_of_a_run.py::test_the_files_of_a_run_agree_with_it_and_with_each_other",
    ),
    mutant(
        "ledger line not synced",
        "records/ledger.py",
        "            sync(self._file.fileno())\n        except OSError",
        "        except OSError",
        "records/test_ledger.py::test_a_step_is_on_disk_when_append_returns",
    ),
    mutant(
        "checksums not compared",
        "records/ledger_lines.py",
        'if sealed != line + b"\\n":',
        "if False:",
        "records/test_ledger.py::test_every_changed_byte_is_noticed",
    ),
    mutant(
        "a torn step forgotten",
        "records/ledger.py",
        "self._steps, self._chain = self._steps + 1, self._last\n\n\ndef epsilon_together",
        "pass\n\n\ndef epsilon_together",
        "records/test_ledger.py::test_a_torn_step_counts_as_the_dearest_so_far",
    ),
    mutant(
        "a torn step at the lowest price",
        "accounting/events.py",
        "cls(min(e.noise_multiplier for e in events), max",
        "cls(max(e.noise_multiplier for e in events), max",
        "records/test_ledger.py::test_a_torn_step_counts_as_the_dearest_so_far",
    ),
    mutant(
        "two writers",
        "records/files.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "records/test_ledger.py::test_a_ledger_has_one_writer_at_a_time",
    ),
    mutant(
        "the count of an earlier process forgotten",
        "training/durable_run.py",
        "for event in folder.ledger.history():",
        "for event in ():",
        "training/test_resumed_run.py::test_a_resumed_run_spends_what_an_undisturbed_one_spends",
    ),
    mutant(
        "seeded draws repeated after a crash",
        "training/durable_run.py",
        "if self._seed is not None:\n            stream",
        "if False:\n            stream",
        "training/test_resumed_run.py::test_a_seeded_run_draws_from_another_stream_after_a_crash",
    ),
    mutant(
        "a ledger that lost lines is taken",
        "records/run_folder.py",
        "if checkpoint.steps > done or record.chains[checkpoint.steps] != checkpoint.chain:",
        "if False:",
        "training/test_refused_resumption.py::test_a_ledger_that_lost_whole_lines_is_refused_at_the_line",
    ),
    mutant(
        "checkpoints written in place",
        "runtime/files.py",
        'part = path.with_name(f".{path.name}.part")',
        "part = path",
        "records/test_checkpoint.py::test_a_checkpoint_that_cannot_be_written_leaves_the_one_before",
    ),
    mutant(
        "a changed checkpoint is taken",
        "records/checkpoint.py",
        'if metadata["digest"] != _digest(text, tensors):',
        "if False:",
        "records/test_checkpoint.py::test_every_changed_byte_of_a_checkpoint_is_noticed",
    ),
    mutant(
        "a report that forgets the relation",
        "training/durable_run.py",
        '"neighboring": self._optimizer.neighboring,\n            "seeded"',
        '"seeded"',
        "training/test_files_of_a_run.py::test_the_report_has_every_field_and_says_what_was_spent",
    ),
]

FILES = [
    mutant(
        "a run that could not be restored is gone on with at the second try",
        "records/run_folder.py",
        "self._unsaid = self._half = from_disk",
        "self._unsaid = from_disk",
        "training/test_refused_resumption.py::test_what_was_refused_is_not_gone_on_with_at_the_second_try",
    ),
    mutant(
        "a ledger that lost lines lowers what a trainer spent",
        "training/durable_run.py",
        "if again.num_steps < self._accountant.num_steps:",
        "if False:",
        "training/test_refused_resumption.py::test_a_ledger_that_lost_lines_between_two_fits_is_refused",
    ),
    mutant(
        "a schedule that is set later is not rehearsed",
        "training/trainer.py",
        "self._scheduler = scheduler_of(schedule, self.optimizer.original, self.steps, self._run.done)",
        "self._scheduler = schedule",
        "training/test_refused_resumption.py::test_a_schedule_that_is_set_later_is_rehearsed_before_anything_is_spent",
    ),
    mutant(
        "the ledger does not say that noise was secure",
        "training/durable_run.py",
        "**{name: value for name, value in self._marks.items() if value},",
        "",
        "training/test_refused_resumption.py::test_a_run_does_not_become_secure_half_way",
    ),
    mutant(
        "new weights beside an earlier run's report",
        "training/durable_run.py",
        "    remove(path)  # first",
        "    # first",
        "training/test_refused_resumption.py::test_no_weights_lie_beside_the_report_of_others",
    ),
    mutant(
        "an object twice in a list counts twice",
        "sampling/distinct.py",
        "isinstance(dataset, list | tuple)",
        "False",
        "sampling/test_distinct.py",
    ),
    mutant(
        "a relation beside a ledger is passed over",
        "cli/account.py",
        '            "neighboring": neighboring,\n        }.items():',
        "        }.items():",
        "cli/test_commands.py::test_account_does_not_pass_over_what_a_ledger_does_not_say",
    ),
]
