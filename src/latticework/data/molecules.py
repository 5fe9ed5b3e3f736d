"""Molecules as graphs: SMILES in a CSV (extra `molecules`: RDKit), and the arrays of published sets, with the same features.

Atoms have one-hot elements ``atom=C`` (those in the set) and the numbers degree, charge, hydrogens, aromatic, in ring; bonds are
listed both ways, with one-hot types ``bond=single``. Hydrogens are implicit, as RDKit reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latticework.core.errors import UserError

from .graphs import Array, GraphSet, coded_classes
from .mirror import read_arrays
from .table import column_named, line_of, need, read_table

ID, LABEL, TARGET = ("id", "mol_id", "molecule"), ("label", "class"), ("target", "y")
BONDS = ("single", "double", "triple", "aromatic")
NUMBERS = ("degree", "charge", "hydrogens", "aromatic", "in ring")
ELEMENTS = (  # by atomic number; * is any atom
    "*", "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca", "Sc",
    "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr", "Nb",
    "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm",
    "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl",
    "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md",
    "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og",
)  # fmt: skip


def molecule_set(
    ids: tuple[str, ...],
    sizes: Array,
    edge_index: Array,
    element: Array,
    numbers: Array,
    bond: Array,
    bonds: tuple[str, ...] = BONDS,
) -> GraphSet:
    """element int [n] (atomic numbers), numbers [n, 5] as `NUMBERS`, bond int [m] (numbers of `bonds`)."""
    elements, atom = np.unique(element, return_inverse=True)
    kinds, kind = np.unique(bond, return_inverse=True)
    hot = np.eye(len(elements), dtype=np.float32)[atom]
    return GraphSet(
        ids, sizes.astype(np.int64), edge_index.astype(np.int64),
        x=np.concatenate([hot, numbers.astype(np.float32)], axis=1),
        features=(*(f"atom={ELEMENTS[int(z)]}" for z in elements), *NUMBERS),
        edge_x=np.eye(len(kinds), dtype=np.float32)[kind] if len(kinds) else None,
        edge_features=tuple(f"bond={bonds[int(k)]}" for k in kinds),
    )  # fmt: skip


def read_molecules(path: Path, target: str) -> GraphSet:
    """A published set as arrays (node_ptr, edge_ptr, edge_index local to each graph, …, y); graphs are named by their row."""
    from dataclasses import replace

    held = read_arrays(path)
    sizes, counts = np.diff(held["node_ptr"].astype(np.int64)), np.diff(held["edge_ptr"].astype(np.int64))
    edge_index = held["edge_index"].astype(np.int64) + np.repeat(held["node_ptr"][:-1].astype(np.int64), counts)
    columns = [held[k] for k in ("degree", "formal_charge", "num_h", "aromatic", "in_ring")]
    ids = tuple(str(i) for i in range(len(sizes)))
    graphs = molecule_set(ids, sizes, edge_index, held["atomic_number"], np.stack(columns, axis=1), held["bond_type"])
    # float32 in the file: the shortest decimal number is what was measured
    y = np.array([float(str(v)) for v in held["y"]])
    return replace(graphs, targets=y[:, None], target_names=(target,))


def read_smiles(path: Path, label: str | None = None, target: str | None = None) -> GraphSet:
    """A CSV (or parquet) with a column smiles, and classes in `label` or numbers in `target` where they are named or so called.

    Rows are named by a column id, else by their number from 0. A cell of a label or a target may be empty: unknown.
    `UserError` names file, line and SMILES where RDKit cannot read one.
    """
    from dataclasses import replace

    import polars as pl

    frame = read_table(path)
    smiles = need(path, frame, "smiles")
    named = column_named(frame, *ID)
    ids = tuple(str(i) for i in range(len(frame))) if named is None else tuple(frame[named].to_list())
    if len(set(ids)) < len(ids):
        first: dict[str, int] = {}
        for row, name in enumerate(ids):
            if name in first:
                raise UserError(
                    f"{path}, line {line_of(row)}: id {name!r} stands on line {line_of(first[name])}, too; ids are unique"
                )
            first[name] = row
    graphs = molecules_of(path, frame[smiles].to_list(), ids)
    notes = []
    label_column = need(path, frame, label.lower()) if label else column_named(frame, *LABEL)
    target_column = need(path, frame, target.lower()) if target else column_named(frame, *TARGET)
    if label_column is not None:
        where, advice = f"{path}, column {label_column!r}", f"for a number to predict say data.target_column={label_column}"
        classes, y = coded_classes(where, frame[label_column].to_list(), advice)
        graphs = replace(graphs, y=y, classes=classes)
        if (y < 0).any():
            notes.append(f"{int((y < 0).sum())} molecules have no label: they are the ones to predict")
    if target_column is not None:
        column = frame[target_column]
        values = column.cast(pl.Float64, strict=False)
        bad = ((column != "") & (values.is_null() | ~values.is_finite().fill_null(False))).arg_true()
        if len(bad):
            raise UserError(
                f"{path}, line {line_of(bad[0])}, column {target_column!r}: {column[int(bad[0])]!r} where a finite number is expected"
            )
        numbers = values.fill_null(float("nan")).to_numpy()
        graphs = replace(graphs, targets=numbers[:, None].astype(np.float64), target_names=(target_column,))
        if np.isnan(numbers).any():
            notes.append(f"{int(np.isnan(numbers).sum())} molecules have no {target_column}: they are the ones to predict")
    unused = [c for c in frame.columns if c not in (smiles, named, label_column, target_column)]
    if unused:
        notes.append(
            f"columns that nothing reads: {', '.join(unused)} (say data.target_column=NAME or data.label_column=NAME to predict one)"
        )
    return replace(graphs, notes=tuple(notes))


def molecules_of(path: Path, smiles: list[str], ids: tuple[str, ...]) -> GraphSet:
    """The graphs of SMILES, one a row of a table."""
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise UserError("SMILES are read with RDKit; install it with: pip install 'latticework[molecules]'") from None
    of_bond = {getattr(Chem.BondType, name.upper()): i for i, name in enumerate(BONDS)}
    bonds = list(BONDS)
    sizes, element, numbers, ends, kinds = [], [], [], [], []
    start = 0
    with rdBase.BlockLogs():
        for row, text in enumerate(smiles):
            found: Any = Chem.MolFromSmiles(text) if text else None
            if found is None or not found.GetNumAtoms():
                what = repr(text) if text else "nothing"
                raise UserError(
                    f"{path}, line {line_of(row)}: {what} is not a SMILES that RDKit can read; correct or remove the row"
                )
            for atom in found.GetAtoms():
                element.append(atom.GetAtomicNum())
                numbers.append(
                    (atom.GetDegree(), atom.GetFormalCharge(), atom.GetTotalNumHs(), atom.GetIsAromatic(), atom.IsInRing())
                )
            for bond in found.GetBonds():
                u, v, kind = bond.GetBeginAtomIdx() + start, bond.GetEndAtomIdx() + start, bond.GetBondType()
                if kind not in of_bond:  # a dative bond, say: a type of its own
                    of_bond[kind] = len(bonds)
                    bonds.append(str(kind).lower())
                ends += [(u, v), (v, u)]
                kinds += [of_bond[kind]] * 2
            sizes.append(found.GetNumAtoms())
            start += sizes[-1]
    edge_index = np.array(ends, np.int64).reshape(-1, 2).T
    return molecule_set(
        ids,
        np.array(sizes),
        edge_index,
        np.array(element),
        np.array(numbers, np.float32),
        np.array(kinds, np.int64),
        tuple(bonds),
    )
