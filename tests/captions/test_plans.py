"""Plans and findings on sets made by hand, with the tags that are expected written down beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_trainer.captions import findings as fi
from lib_trainer.captions import plans as pl
from lib_trainer.captions.document import Caption
from lib_trainer.captions.edits import Facts
from lib_trainer.captions.knowledge import GROUPS, Knowledge, built_in, read_knowledge
from lib_trainer.refusals import ConfigError, DatasetError

KNOWN = built_in()
NOTHING = Facts()


def made(*texts: str) -> dict[str, Caption]:
    return {f"{number}.png": Caption.parse(text) for number, text in enumerate(texts)}


def test_the_child_stays_and_the_parent_goes() -> None:
    captions = made(
        "1girl, sword, weapon, holding sword, holding weapon, holding",
        "weapon, long sleeves, sleeves past fingers, sleeves past wrists",
        "weapon, very long hair, long hair",
    )
    pairs = frozenset((one.child, one.parent) for one in pl.implied_pairs(captions, KNOWN))
    edit = pl.DropImplied(pairs)
    after = [edit.apply(caption, NOTHING).text for caption in captions.values()]
    assert after == ["1girl, holding sword", "weapon, long sleeves, sleeves past fingers", "weapon, very long hair"]


def test_of_tags_that_imply_each_other_one_stays() -> None:
    edit = pl.DropImplied(frozenset({("a", "b"), ("b", "a")}))
    assert edit.apply(Caption.parse("x, b, a"), NOTHING).text == "x, b"


def test_a_chain_whose_middle_goes_drops_its_end() -> None:
    edit = pl.DropImplied(frozenset({("a", "b"), ("b", "c")}))
    assert edit.apply(Caption.parse("c, b, a"), NOTHING).text == "a"


def test_implications_are_learned_from_the_set_and_marked() -> None:
    captions = made(
        *["zorb, cape of dawn, cloth of dawn"] * 2,
        "zorb, cape of dawn, cloth of dawn, hat",
        "zorb, cloth of dawn",
        "zorb, hat, sword, weapon",
        *["zorb, sword, weapon"] * 2,
        "zorb, weapon",
        "zorb, hat",
    )
    assert pl.learned_pairs(captions, KNOWN) == [pl.Implied("cape of dawn", "cloth of dawn", 3, learned=True)]


CHARACTER = made(
    "1girl, solo, silver hair, red eyes, mole under eye, white dress, hair ribbon, smile, standing, rain, full body",
    "1girl, solo, silver hair, red eyes, mole under eye, white dress, hair ribbon, sitting, indoors, full body",
    "1girl, solo, silver hair, red eyes, mole under eye, black jacket, hair ribbon, smile, upper body, rain",
    "1girl, solo, silver hair, red eyes, white dress, running, outdoors, smile",
)


def pruned(school: str, protected: str = "") -> list[str]:
    proposal = pl.traits(CHARACTER, KNOWN, school, protected=protected, trigger="alba")
    edit = pl.fold(proposal, "alba", school)
    edit.check()
    return [edit.apply(caption, NOTHING).text for caption in CHARACTER.values()]


def test_delete_all_feature_tags() -> None:
    assert pruned("delete-all") == [
        "alba, 1girl, solo, smile, standing, rain, full body",
        "alba, 1girl, solo, sitting, indoors, full body",
        "alba, 1girl, solo, black jacket, smile, upper body, rain",
        "alba, 1girl, solo, running, outdoors, smile",
    ]


def test_delete_what_defines_the_character() -> None:
    assert pruned("delete-some", "silver *")[0] == (
        "alba, 1girl, solo, silver hair, white dress, hair ribbon, smile, standing, rain, full body"
    )


def test_keep_all() -> None:
    assert pruned("keep-all") == [f"alba, {caption.text}" for caption in CHARACTER.values()]


def test_a_style_set_keeps_what_is_depicted() -> None:
    captions = made("1girl, tree, watercolor (medium), sketch", "cat, house, watercolor (medium), masterpiece")
    edit = pl.fold(pl.traits(captions, KNOWN, "style"), "alba style", "style")
    assert [edit.apply(one, NOTHING).text for one in captions.values()] == [
        "alba style, 1girl, tree",
        "alba style, cat, house",
    ]


def test_a_trait_on_part_of_the_set_is_warned_of() -> None:
    proposal = pl.traits(CHARACTER, KNOWN, "delete-all", trigger="alba")
    assert {one.key for one in proposal if one.partial} == {"mole under eye", "white dress", "hair ribbon"}
    assert str(pl.warnings(proposal)[0]).startswith("mole under eye stands on 75% of the pictures only")
    assert [one.group for one in proposal] == sorted((one.group for one in proposal), key=GROUPS.index)


def test_every_school_says_what_it_costs() -> None:
    assert {"delete-all", "delete-some", "keep-all", "style"} == set(pl.SCHOOLS)
    assert all(len(school.cost) > 60 for school in pl.SCHOOLS.values())
    with pytest.raises(ConfigError, match="also one of the tags that would be removed"):
        pl.fold(pl.traits(CHARACTER, KNOWN, "delete-all"), "red eyes", "delete-all").check()


def test_contradictions() -> None:
    captions = made(
        "1girl, solo, long hair, short hair",
        "1girl, solo, blue eyes, red eyes",
        "1girl, solo, blue eyes, red eyes, heterochromia",
        "2girls, blue eyes, red eyes, long hair, short hair",
        "1girl, 2girls",
        "1girl, solo, very long hair, long hair",
    )
    found = {(one.tags, one.pictures) for one in fi.contradictions(captions, KNOWN)}
    assert found == {
        (("long hair", "short hair"), ("0.png",)),
        (("blue eyes", "red eyes"), ("1.png",)),
        (("1girl", "2girls"), ("4.png",)),
    }


def test_entangled_and_singletons() -> None:
    captions = made("z, a, b", "z, a, b, once", "z, b, a, c", "z, c, d", "z, c, d")
    assert [(one.tags, len(one.pictures)) for one in fi.entangled(captions)] == [(("a", "b"), 3)]
    assert str(fi.entangled(captions)[0].text).startswith("a, b always stand together, on 3 pictures")
    assert [one.tags for one in fi.singletons(captions)] == [("once",)]


def test_a_name_of_another_concept_leaks_and_a_smile_does_not() -> None:
    texts = ["alice, smile"] * 8 + ["bob"] * 8 + ["bob, alice, smile"]
    captions = made(*texts)
    concepts = {picture: "alice" if number < 8 else "bob" for number, picture in enumerate(captions)}
    found = fi.leaks(captions, concepts, KNOWN)
    assert [(one.kind, one.tags, one.pictures) for one in found] == [("leak", ("alice",), ("16.png",))]


@pytest.mark.parametrize(
    ("one", "other", "slip"),
    [
        ("balloon", "baloon", True),
        ("hat", "hats", True),
        ("hair", "hiar", True),
        ("red", "rod", True),
        ("sword", "swords 2", False),
        ("eyes1", "eyes2", False),
        ("hair", "riah", False),
        ("same", "same", False),
    ],
)
def test_one_slip_of_the_fingers(one: str, other: str, slip: bool) -> None:
    assert fi._one_slip(one, other) is fi._one_slip(other, one) is slip


def test_misspellings() -> None:
    texts = ["long hair, 1girl, grey eyes"] * 10 + [
        "lnog hair",
        "longhair",
        "2girls",
        "long hairs",
        "green eyes",
        "long hat",
    ]
    found = {one.tags for one in fi.misspellings(made(*texts), KNOWN)}
    assert found == {("lnog hair", "long hair"), ("longhair", "long hair"), ("long hairs", "long hair")}


class Read(dict[str, Caption]):
    """Captions that count how often one of them is looked at."""

    looks = 0

    def items(self) -> Any:
        for name in self:
            self.looks += 1
            yield name, dict.__getitem__(self, name)

    def __getitem__(self, name: str) -> Caption:
        self.looks += 1
        return super().__getitem__(name)


def test_many_findings_cost_no_more_looks_than_one() -> None:
    """Each that was found was looked for in all captions once more: minutes in a set of ten thousand."""
    usual = ["silver hair, green eyes"] * 20
    looks = []
    for slips in (["silver hai"], [f"silver hai{letter}" for letter in "bcdefghij"]):
        captions = Read(made(*usual, *slips))
        found = fi.misspellings(captions, KNOWN)
        assert len(found) == len(slips) and all(len(one.pictures) == 1 for one in found)
        looks.append(captions.looks / len(captions))
    assert looks[0] == looks[1]
    looks = []
    for names in ("zorb", "zorb, glim, wug, dax"):
        captions = Read(made(*[names] * 5, names, *["plain"] * 5))
        found = fi.leaks(captions, {f"{n}.png": "one" if n < 5 else "two" for n in range(11)}, KNOWN)
        assert [one.tags[0] for one in found] == sorted(names.split(", ")) and found[0].pictures == ("5.png",)
        looks.append(captions.looks)
    assert looks[0] == looks[1]


def test_one_sided_features_only_where_pictures_are_mirrored() -> None:
    captions = made("eyepatch, smile", "side ponytail, single glove")
    assert {one.tags[0] for one in fi.one_sided(captions, KNOWN)} == {"eyepatch", "side ponytail", "single glove"}
    assert "one-sided" not in {one.kind for one in fi.all_findings(captions, {}, KNOWN, mirrored=False)}
    assert fi.pictures_of(fi.one_sided(captions, KNOWN))["0.png"] == {"one-sided"}


def test_the_tables_hold_no_cycles_and_know_their_groups() -> None:
    assert len(KNOWN.implications) > 500
    for child in KNOWN.implications:
        assert not [parent for parent in KNOWN.parents(child) if child in KNOWN.parents(parent)]
    wanted = {
        "long hair": "hair", "blue eyes": "eyes", "cat ears": "body", "mole under eye": "face", "smile": "expression",
        "white shirt": "clothes", "hair ribbon": "accessories", "looking at viewer": "pose", "cowboy shot": "view",
        "white background": "background", "watercolor (medium)": "style", "2girls": "count", "zorb": "other",
        "closed eyes": "expression", "hair flower": "accessories", "heart-shaped pupils": "eyes",
    }  # fmt: skip
    assert {tag: KNOWN.group(tag) for tag in wanted} == wanted


def test_the_tables_say_where_they_come_from() -> None:
    from lib_trainer.captions.knowledge import DATA

    for path in DATA.glob("*.csv"):
        text = path.read_text("utf-8")
        assert "Licence: AGPL-3.0" in text and "not taken from a site's database" in text, path.name


def test_a_set_adds_to_the_tables(tmp_path: Path) -> None:
    (tmp_path / "implications.csv").write_text("# mine\nchild,parent\nzorb blade,sword\n", encoding="utf-8")
    (tmp_path / "groups.csv").write_text("clothes,zorb robe;smile\n", encoding="utf-8")
    knowledge = read_knowledge([tmp_path])
    assert knowledge.parents("zorb blade") == {"sword", "weapon"}
    assert knowledge.group("zorb robe") == "clothes"
    assert knowledge.group("smile") == "clothes"  # the user's word counts more than ours
    (tmp_path / "implications.csv").write_text("child,parent\nonly one\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"^Line 2 of '.*implications.csv' must have the columns child, parent\.$"):
        read_knowledge([tmp_path])
    (tmp_path / "implications.csv").unlink()
    (tmp_path / "groups.csv").write_text("hats,bowler\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="there is no group 'hats'"):
        read_knowledge([tmp_path])
    (tmp_path / "groups.csv").write_text(f"clothes,{'a' * 200_000}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"^The table '.*groups.csv' cannot be read"):
        read_knowledge([tmp_path])


def test_a_set_says_what_excludes_each_other(tmp_path: Path) -> None:
    (tmp_path / "exclusive.csv").write_text(
        "name,tags,needs,unless\ncoats,red coat;blue coat,,twins; two people\n", encoding="utf-8"
    )
    knowledge = read_knowledge([tmp_path])
    assert [one.name for one in knowledge.exclusive] == [*(one.name for one in KNOWN.exclusive), "coats"]
    assert "name" not in {one.name for one in KNOWN.exclusive} and not knowledge.asymmetric.matches("tag")
    found = fi.contradictions(made("blue coat, red coat", "red coat, blue coat, two people", "red coat"), knowledge)
    assert [str(one.text) for one in found] == ["blue coat and red coat exclude each other (coats)."]
    assert found[0].pictures == ("0.png",)


def test_several_concepts_are_named() -> None:
    assert pl.several_concepts(["", "cat"]) is None
    assert str(pl.several_concepts(["dog", "", "cat"])).startswith("These are pictures of cat, dog: filter by folder")


def test_an_empty_table_is_no_table() -> None:
    assert Knowledge().group("smile") == "other"
    assert Knowledge().parents("sword") == frozenset()
