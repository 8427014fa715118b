"""The group: sums, shares, agreements, facts, secrets; one that is gone, and a group of one."""

import copy
import os
import pickle
import time

import pytest
import torch
from helpers.ranks import on_ranks, refusals, values

import dplip
from dplip.distributed import Group
from dplip.errors import ConfigurationError, GroupError, LedgerError
from dplip.runtime import group as module


def mixed(rank):
    """Tensors of several shapes, types and layouts."""
    torch.manual_seed(rank)
    return [
        torch.randn(3, 5),
        torch.randn((), dtype=torch.float64),
        torch.randn(4, 6).T,
        torch.randn(1),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(7, dtype=torch.float64),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("bucket", [1, 60, module.BUCKET])
def test_sums_are_complete_when_they_are_owned_and_each_entry_is_owned_once(size, bucket, monkeypatch):
    monkeypatch.setattr(module, "BUCKET", bucket)
    exact = [sum(parts).double() for parts in zip(*map(mixed, range(size)), strict=True)]

    def summed(group):
        tensors, owned = mixed(group.rank), 0
        for index, part in group.summed(tensors):
            assert part.dtype == tensors[index].dtype
            owned += part.numel()
            part.add_(1000 * (group.rank + 1))
        return tensors, owned

    found = values(size, summed) if size > 1 else [summed(Group())]
    assert sum(owned for _, owned in found) == sum(t.numel() for t in exact)
    for tensors, _ in found:
        for tensor, first, total in zip(tensors, found[0][0], exact, strict=True):
            assert torch.equal(tensor, first)
            marked = (tensor.double() - total) / 1000
            assert torch.allclose(marked, marked.round(), atol=1e-6)
            assert bool(((marked.round() >= 1) & (marked.round() <= size)).all())


def test_a_sum_is_rounded_once():
    """One by one in float32, in any order, at least one of these sums would lose a 1."""
    large = 2.0**26
    terms = torch.tensor([[large, 1, -large, 1], [large, -large, 1, 1], [large, 1, 1, -large]])

    def summed(group):
        tensors = [terms[:, group.rank].clone()]
        for _ in group.summed(tensors):
            pass
        return tensors[0].tolist()

    assert values(4, summed) == [[2.0] * 3] * 4


def test_everyone_gets_the_values_of_the_first():
    def shared(group):
        tensors = [*mixed(group.rank), torch.tensor([group.rank, 7])]
        group.share_(tensors)
        return tensors

    for tensors in values(3, shared):
        assert all(torch.equal(a, b) for a, b in zip(tensors, [*mixed(0), torch.tensor([0, 7])], strict=True))


def test_a_secret_is_new_each_time_and_the_same_for_all():
    found = values(3, lambda group: [group.secret() for _ in range(3)])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3
    assert all(secret.bit_length() > 64 for secret in found[0])


def test_the_largest_is_taken_by_name():
    found = values(3, lambda group: group.largest({"a": float(group.rank), "b": -float(group.rank)}))
    assert found == [{"a": 2.0, "b": 0.0}] * 3


def test_a_problem_of_one_is_raised_by_all_wherever_they_are():
    def busy(group):
        if group.rank == 2:
            group.agree(LedgerError("the ledger is torn"))
        steps = [lambda: group.secret(), lambda: list(group.summed([torch.ones(3)]))]
        steps[group.rank]()

    kind, text = refusals(3, busy)
    assert (kind, text) == (LedgerError, "rank 2 of 3: the ledger is torn")


def test_what_all_find_is_said_as_by_one():
    def wrong(group):
        with group.agreed(lambda: "a check"):
            raise ConfigurationError("batch_size=0: too few")

    assert refusals(3, wrong) == (ConfigurationError, "batch_size=0: too few")


def test_an_error_of_all_is_not_asked_about_again():
    def nested(group):
        try:
            with group.agreed(lambda: "outer"), group.agreed(lambda: "inner"):
                if group.rank == 0:
                    raise ConfigurationError("no")
        finally:
            group.agree(doing="afterwards")

    assert refusals(2, nested) == (ConfigurationError, "rank 0 of 2: no")


def test_processes_that_do_different_things_are_refused():
    def different(group):
        with group.agreed(lambda: f"step {group.rank // 2}"):
            pass

    kind, text = refusals(3, different)
    assert kind is GroupError
    assert "rank 2 of 3 is at 'step 1', and rank 0 at 'step 0'" in text


def test_the_first_has_its_turn_before_the_others(tmp_path):
    def turn(group):
        def call():
            if group.rank == 0:
                time.sleep(0.3)
                (tmp_path / "line").write_text("written")
            assert (tmp_path / "line").exists()

        group.in_turn(call)

    values(3, turn)


def test_a_process_that_ends_stops_the_others():
    def ends(group):
        if group.rank == 1:
            os._exit(1)
        group.agree()

    started = time.monotonic()
    first, second, third = on_ranks(3, ends)
    assert second.error is None
    for outcome in (first, third):
        assert isinstance(outcome.error, GroupError)
        assert "has ended, or has not answered" in str(outcome.error)
    assert time.monotonic() - started < 35


def test_a_process_that_does_not_answer_stops_the_others_after_the_stated_time():
    def sleeps(group):
        if group.rank == 1:
            time.sleep(9)
            return
        started = time.monotonic()
        try:
            group.agree()
        finally:
            assert 1 < time.monotonic() - started < 8
            with pytest.raises(GroupError, match="within 2 s"):
                group.secret()  # and it takes part in nothing else

    first, second = on_ranks(2, sleeps, timeout=2.0)
    assert second.error is None
    assert isinstance(first.error, GroupError)
    assert "timeout=" in str(first.error)


def test_a_group_is_not_copied():
    def copied(group):
        for copy_of in (copy.deepcopy, pickle.dumps):
            with pytest.raises(ConfigurationError, match="a copy"):
                copy_of(group)

    values(2, copied)


def test_one_process_is_a_group_of_its_own():
    group = dplip.distributed.group()
    assert (group.rank, group.size) == (0, 1)
    group.agree(doing="anything")
    group.same(dict)
    tensors = [torch.ones(2)]
    assert [(i, t is tensors[i]) for i, t in group.summed(tensors)] == [(0, True)]
    assert group.largest({"a": 1.0}) == {"a": 1.0}
    with pytest.raises(LedgerError, match="torn"), group.agreed(lambda: "this"):
        raise LedgerError("torn")
    assert dplip.distributed.device().type in ("cpu", "cuda")


def test_an_environment_without_addresses_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=r"WORLD_SIZE=2: .*torchrun"):
        dplip.distributed.group()
