"""Mutants of the reading of tables and images."""

from attacks.mutants.mutant import Mutant, mutant

TABLES = [
    mutant(
        "a file read by the type of its column",
        "data/frames.py",
        "    return names, columns",
        "    import pandas\n\n"
        "    read = [pandas.to_numeric(pandas.Series(c), errors='coerce') for c in columns]\n"
        "    return names, [c if (r != r).any() else r.tolist() for c, r in zip(columns, read)]",
        "data/test_neighbouring_tables.py::test_one_more_row_of_a_file_changes_no_bit_of_the_others",
    ),
    mutant(
        "floats that are whole, as other text than whole numbers",
        "data/schema.py",
        "return str(int(value)) if whole else",
        "return str(value) if whole else",
        "data/test_neighbouring_tables.py::test_one_more_value_that_changes_a_columns_type_changes_no_other",
    ),
    Mutant(
        "short records filled up",
        "data/frames.py",
        (
            ("if len(record) != len(names):", "record += [''] * (len(names) - len(record))\n            if False:"),
            ("zip(columns, record, strict=True)", "zip(columns, record, strict=False)"),
        ),
        "data/test_neighbouring_tables.py::test_what_is_no_row_is_refused_wherever_it_stands",
    ),
    mutant(
        "held out by number",
        "data/checks.py",
        "[_coin(row, seed) < fraction for row in _rows(dataset)]",
        "[_coin(b'%d' % i, seed) < fraction for i, _ in enumerate(_rows(dataset))]",
        "data/test_holdout.py::test_holdout_keeps_neighbours_neighbouring_wherever_the_example_stands",
    ),
    mutant(
        "held out by number, in a table",
        "data/checks.py",
        "[_coin(row, seed) < fraction for row in _rows(dataset)]",
        "[_coin(b'%d' % i, seed) < fraction for i, _ in enumerate(_rows(dataset))]",
        "data/test_neighbouring_tables.py::test_neighbouring_tables_have_training_parts_that_differ_in_one_row",
    ),
    mutant(
        "a quote left open takes in later rows",
        "data/frames.py",
        'if any("\\n" in field or "\\r" in field for field in record):',
        "if False:",
        "data/test_tables.py::test_a_record_that_takes_in_others_is_refused",
    ),
    mutant(
        "folds that are chosen by the labels",
        "estimators/search.py",
        "if type(folds) not in (KFold, RepeatedKFold):",
        "if False:",
        "estimators/test_estimators.py::test_a_search_in_a_pipeline_says_what_all_its_fits_spent",
    ),
]
