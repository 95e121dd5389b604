"""The standalone page in a real browser, over the real runner and monitor with a scripted run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from lib_trainer.training import desk as training_desk
from lib_trainer.training.desk import TrainingDesk
from tests.browser.axe import COLOURS, findings, findings_of_both_themes
from tests.browser.chromium import MARKS, Tab, driver, served
from tests.ui.fakes import FakeGenerator, FakeHost, Script
from tests.ui.test_train_actions import taken_name

playwright = driver()
pytestmark = MARKS
expect = playwright.expect


@dataclass
class Site:
    """The served page and what stands behind it."""

    address: str
    script: Script
    runner: TrainingDesk
    generator: FakeGenerator
    pictures: Path


@pytest.fixture
def site(tmp_path: Path, tab: Tab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    from lib_trainer.ui.standalone import build_app

    script = Script(step_seconds=0.02, cache_seconds=0.02)
    monkeypatch.setattr(training_desk, "prepare", script.prepare)
    monkeypatch.setattr(training_desk, "run_plan", script.run_plan)
    runner, generator = TrainingDesk(FakeHost(tmp_path)), FakeGenerator()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    app = build_app(runner, generator)
    with served(tab, app, runner) as address:
        yield Site(address, script, runner, generator, pictures)
        foreign = [url for url in tab.answers if not url.startswith((address, "data:", "blob:"))]
    assert foreign == []


@dataclass
class Page:
    """A browser page with the words that the tests use."""

    raw: playwright.Page

    def find(self, name: str) -> playwright.Locator:
        return self.raw.locator(f"#trainer_{name}")

    def field(self, name: str) -> playwright.Locator:
        """An option's box, with the folds around it open."""
        field = f"trainer_{name}"
        self.raw.wait_for_function("(id) => window.trainerForm && document.getElementById(id)", arg=field)
        self.raw.evaluate("(id) => trainerForm.reveal(document.getElementById(id))", field)
        return self.find(name).locator("textarea, input").first

    def choose(self, name: str, value: str) -> None:
        """An entry of an option's list."""
        self.field(name).click()
        self.find(name).locator("ul.options li").filter(has_text=re.compile(rf"(^|\s){value}\s*$")).click()

    def open_all(self) -> None:
        """Every fold, also those inside of others."""
        lines = "#trainer_page .trainer-fold > .label-wrap:not(.open)"
        self.raw.evaluate("(lines) => document.querySelectorAll(lines).forEach((line) => line.click())", lines)
        expect(self.raw.locator(lines)).to_have_count(0)

    def sees(self, selector: str, text: str | re.Pattern[str] = "") -> None:
        """Waited for first: of a page where it is not yet, each look of `expect` would describe the whole."""
        self.raw.locator(selector).first.wait_for(state="attached")
        expect(self.raw.locator(selector).first).to_contain_text(text)

    def fill_job(self, site: Site, steps: int) -> None:
        self.field("dataset_folder").fill(str(site.pictures))
        self.field("output_name").fill("cat")
        self.field("training_max_steps").fill(str(steps))
        self.field("preview_prompt").fill("a cat")
        self.field("preview_every").fill("20")


def open_page(tab: Tab, site: Site, query: str = "") -> Page:
    page = Page(tab.open(f"{site.address}{query}", 1280, 900))
    page.sees(".trainer-host", "SD 1.x")  # the first poll has been answered
    return page


@pytest.fixture
def page(tab: Tab, site: Site) -> Page:
    return open_page(tab, site)


@pytest.fixture
def answer(tab: Tab, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[Page, Event]:
    """A page that has asked for the last job's values, which are there once the event is set."""
    from lib_trainer.config import from_values, to_values
    from lib_trainer.ui.train.job_files import JobFiles

    asked, answered = Event(), Event()
    own = {"output.name": "old", "training.max_steps": 77, "preview.prompt": "an old one", "captions.shuffle": True}
    last = to_values(from_values({**own, "optimizer.schedule": "linear", "optimizer.floor": 0.5}))

    def last_job(files: JobFiles) -> dict[str, object]:
        asked.set()
        answered.wait(60)
        return last

    monkeypatch.setattr(JobFiles, "last_job", last_job)
    page = open_page(tab, request.getfixturevalue("site"))  # made of what is patched here
    assert asked.wait(60)
    return page, answered


def test_what_is_set_before_the_last_job_is_there_stays(answer: tuple[Page, Event]) -> None:
    """Whatever it is set by; and what it shows and hides stays, too."""
    page, answered = answer
    page.field("output_name").fill("mine")
    page.field("training_max_steps").fill("5")
    page.choose("optimizer_schedule", "constant")
    page.field("buckets_enabled").check()
    expect(page.field("buckets_high")).to_be_visible()
    answered.set()
    expect(page.field("preview_prompt")).to_have_value("an old one")
    expect(page.field("output_name")).to_have_value("mine")
    expect(page.field("training_max_steps")).to_have_value("5")
    expect(page.field("captions_shuffle")).to_be_checked()
    expect(page.field("optimizer_schedule")).to_have_value("constant")
    expect(page.find("optimizer_floor")).to_be_hidden()
    expect(page.field("buckets_enabled")).to_be_checked()
    expect(page.field("buckets_high")).to_be_visible()


def test_bad_input_is_a_sentence_and_what_was_typed_stays(page: Page) -> None:
    page.field("output_name").fill("cat")
    page.field("optimizer_unet_lr").fill("1e-3")
    page.find("start").click()
    page.sees(".trainer-notice-error", "Folder of pictures is empty: it must be a folder <that> holds your pictures.")
    expect(page.field("output_name")).to_have_value("cat")
    expect(page.field("optimizer_unet_lr")).to_have_value("1e-3")
    page.field("optimizer_unet_lr").fill("7")
    page.find("start").click()
    page.sees(".trainer-notice-error", re.compile("Learning rate, UNet = 7.* from 0 to 1"))


def test_all_mistakes_at_once_each_at_its_field(page: Page) -> None:
    page.field("network_rank").fill("-4")
    page.field("network_rank").press("Tab")
    expect(page.field("network_rank")).to_have_value("-4")
    page.field("network_dropout").fill("7")
    for name in ("more_network", "section_network"):
        page.find(name).locator("> .label-wrap").click()
    expect(page.find("network_rank")).to_be_hidden()
    page.find("start").click()
    page.sees(".trainer-notice-error", "3 things are to be mended")
    for name, said in (("network_rank", "Rank (dim) = -4"), ("dataset_folder", "Folder of pictures is empty")):
        expect(page.find(name)).to_have_class(re.compile("trainer-invalid"))
        expect(page.find(name).locator(".trainer-field-error")).to_contain_text(said)
        expect(page.field(name)).to_have_attribute("aria-describedby", f"trainer_{name}_error")
    expect(page.raw.locator("#trainer_more_network .trainer-field-error")).to_be_visible()
    expect(page.raw.locator("#trainer_network_rank .trainer-field-error")).to_be_visible()
    page.field("network_rank").fill("8")
    expect(page.find("network_rank")).not_to_have_class(re.compile("trainer-invalid"))
    expect(page.find("dataset_folder")).to_have_class(re.compile("trainer-invalid"))


def test_a_taken_name_is_offered_ways_out_beside_the_field(page: Page, site: Site) -> None:
    taken = site.pictures / "cat.safetensors"

    site.script.settle = taken_name(taken)
    page.fill_job(site, steps=20)
    expect(page.find("start_free")).to_be_hidden()
    page.find("start").click()
    expect(page.find("output_name").locator(".trainer-field-error")).to_contain_text("exists already")
    expect(page.find("start_free")).to_have_text("Start as cat-2")
    old = site.runner.host.lora_folder() / "cat.safetensors"
    old.parent.mkdir()
    old.write_bytes(b"what a stopped run left")
    page.find("discard").click()
    page.sees(".trainer-notice", "cat.safetensors went to the trash")
    expect(page.find("start_free")).to_be_hidden()
    assert not old.exists() and site.runner.view() is None
    page.find("start").click()
    page.find("start_continue").click()
    page.sees(".trainer-state-finished", "cat-2.safetensors")
    expect(page.field("output_name")).to_have_value("cat-2")
    expect(page.field("network_continue_from")).to_have_value(str(taken))
    expect(page.find("start_free")).to_be_hidden()


def test_the_trigger_word_and_the_previews_prompt_go_into_the_prompt(page: Page, site: Site) -> None:
    page.fill_job(site, steps=20)
    page.field("dataset_trigger_word").fill("zorb")
    page.find("start").click()
    page.sees(".trainer-state-finished", "cat.safetensors")
    prompt = page.raw.locator("#generate_prompt textarea")
    page.find("use").click()
    expect(prompt).to_have_value("zorb <lora:cat:1>")
    page.find("use_prompt").dispatch_event("click")
    expect(prompt).to_have_value("zorb <lora:cat:1>, a cat")
    prompt.fill("<lora:zorb:1>")
    page.find("use").dispatch_event("click")
    expect(prompt).to_have_value("<lora:zorb:1>, zorb <lora:cat:1>")


def test_what_was_said_of_stopping_goes_with_the_run(page: Page, site: Site) -> None:
    site.script.step_seconds = 0.2
    page.fill_job(site, steps=100_000)
    page.find("start").click()
    page.sees(".trainer-status", re.compile(r"\d+ / 100,000"))
    page.find("stop").click()
    page.sees(".trainer-state-stopped", "cat.safetensors")
    expect(page.raw.locator(".trainer-notice-active")).to_have_count(0)


def test_no_button_of_the_generate_tab_is_silent(page: Page, site: Site) -> None:
    page.raw.locator(".tab-nav button", has_text="Generate").click()
    page.raw.locator("#generate_insert").click()
    page.sees("#generate_notice", "Nothing is chosen in the list")
    page.raw.locator("#generate_refresh").click()
    page.sees("#generate_notice", "3 trained here.")
    page.raw.locator("#generate_steps input").fill("999")
    page.raw.locator("#generate_run").click()
    page.sees("#generate_steps .trainer-field-error", "Sampling steps = 999 is not allowed")
    expect(page.raw.locator("#generate_steps input")).to_have_value("999")
    assert site.generator.asked == []


def test_a_run_from_start_to_the_prompt(page: Page, site: Site) -> None:
    page.fill_job(site, steps=60)
    site.script.cached.clear()
    site.script.finish.clear()
    page.find("start").click()
    page.sees(".trainer-status", "Caching latents 12/40 · 30%")
    site.script.cached.set()
    page.sees(".trainer-status", re.compile(r"\d+ / 60"))
    expect(page.find("start")).to_be_disabled()
    expect(page.raw.locator("#trainer_chart polyline.trainer-smoothed")).to_have_count(1)
    page.sees("#trainer_gallery .caption-label", "Step 40")
    expect(page.find("use")).to_be_hidden()
    site.script.finish.set()
    page.sees(".trainer-state-finished", "cat.safetensors")
    assert page.raw.locator("#trainer_gallery img").first.evaluate("image => image.naturalWidth") == 192
    expect(page.find("start")).to_be_enabled()
    page.find("use").click()
    prompt = page.raw.locator("#generate_prompt textarea")
    expect(prompt).to_be_visible()
    expect(prompt).to_have_value("<lora:cat:1>")
    page.raw.locator("#generate_run").click()
    expect(page.raw.locator("#generate_image img")).to_be_visible()
    assert site.generator.asked == ["<lora:cat:1>"]


def test_a_reloaded_page_and_a_second_one_show_the_run_and_stop_ends_it(page: Page, site: Site, tab: Tab) -> None:
    site.script.step_seconds = 0.2  # it must outlast the test, not busy the machine
    page.fill_job(site, steps=100_000)
    page.find("start").click()
    page.sees(".trainer-status", re.compile(r"\d+ / 100,000"))
    page.raw.reload()
    page.sees(".trainer-state-running", "cat")
    expect(page.field("output_name")).to_have_value("cat")
    other = open_page(Tab(tab.raw.context.new_page(), tab.port), site)
    other.sees(".trainer-state-running", re.compile(r"\d+ / 100,000"))
    page.find("save").click()
    page.sees(".trainer-output", re.compile(r"cat-\d{6}\.safetensors"))
    page.find("preview_now").click()
    page.sees("#trainer_log", "preview")
    page.find("stop").click()
    page.sees(".trainer-notice", "Stopping after the step in progress")
    page.sees(".trainer-state-stopped", "cat.safetensors")
    other.sees(".trainer-state-stopped", "cat.safetensors")
    other.raw.close()
    assert not site.runner.running


def test_a_failed_run_shows_its_sentence_and_the_form_stays(page: Page, site: Site) -> None:
    site.script.fail_at = 3
    page.fill_job(site, steps=50)
    page.find("start").click()
    page.sees(".trainer-state-failed .trainer-error", "The loss is <not> a number: lower the learning rate.")
    expect(page.field("training_max_steps")).to_have_value("50")


def test_export_and_import(page: Page, site: Site, tmp_path: Path) -> None:
    page.fill_job(site, steps=77)
    page.field("optimizer_unet_lr").fill("2.5e-6")
    with page.raw.expect_download() as download:
        page.find("export").click()
    assert download.value.suggested_filename == "cat.toml"
    file = tmp_path / "cat.toml"
    download.value.save_as(file)
    page.field("training_max_steps").fill("1")
    page.field("output_name").fill("dog")
    chooser = page.raw.locator("input[type=file][accept='.toml']")
    chooser.set_input_files(file)
    page.sees(".trainer-notice", "The form now shows cat.toml.")
    expect(page.field("training_max_steps")).to_have_value("77")
    expect(page.field("output_name")).to_have_value("cat")
    expect(page.field("optimizer_unet_lr")).to_have_value(re.compile(r"^(0\.0000025|2\.5e-6)$"))
    bad = tmp_path / "bad.toml"
    bad.write_text("[network]\nrank = 0\n")
    chooser.set_input_files(bad)
    page.sees(".trainer-notice-error", "in bad.toml is not allowed: it must be a whole number from 1 to 1024.")
    expect(page.field("output_name")).to_have_value("cat")


def test_what_is_set_while_a_job_file_is_read_stays(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand or by a button; what was set before is the file's."""
    from lib_trainer.ui.train.job_files import JobFiles

    read, answered, load = Event(), Event(), JobFiles.load

    def slowly(files: JobFiles, path: Path) -> object:
        read.set()
        answered.wait(60)
        return load(files, path)

    monkeypatch.setattr(JobFiles, "load", slowly)
    file = tmp_path / "cat.toml"
    file.write_text('version = 3\n[output]\nname = "cat"\n[training]\nmax_steps = 7\n[network]\nrank = 4\nalpha = 2\n')
    page.field("training_max_steps").fill("5")
    page.field("network_alpha").fill("3")
    page.raw.locator("input[type=file][accept='.toml']").set_input_files(file)
    assert read.wait(60)
    page.field("output_name").fill("mine")
    page.find("network_alpha").locator(".trainer-back").click()
    expect(page.field("network_alpha")).to_have_value("16")
    answered.set()
    expect(page.field("training_max_steps")).to_have_value("7")
    expect(page.field("network_rank")).to_have_value("4")
    expect(page.field("network_alpha")).to_have_value("16")
    expect(page.field("output_name")).to_have_value("mine")


def test_axe_finds_nothing_grave_on_train_and_generate(tab: Tab, site: Site) -> None:
    """In both themes; and last, that it would find a text without contrast. A run leaves the form as it was."""
    page, of_a_run = open_page(tab, site, "?__theme=dark"), ("#trainer_header", ".trainer-right")
    seen = {"idle": findings_of_both_themes(page.raw, "#trainer_page")}
    page.fill_job(site, steps=40)
    site.script.finish.clear()
    page.find("start").click()
    page.sees(".trainer-status", "39 / 40")
    page.raw.locator(".trainer-find").fill("ema")
    page.sees(".trainer-found", "EMA decay")
    seen["running, searched"] = findings_of_both_themes(page.raw, *of_a_run, ".trainer-finder")
    page.raw.locator(".trainer-find").press("Escape")
    site.script.finish.set()
    page.sees(".trainer-state-finished", "cat.safetensors")
    seen["finished"] = findings_of_both_themes(page.raw, *of_a_run)
    page.find("use").click()
    page.raw.locator("#generate_width input").fill("1")
    page.raw.locator("#generate_run").click()
    page.sees("#generate_width .trainer-field-error", "Width = 1")
    seen["generate, tabs"] = findings_of_both_themes(page.raw, ".trainer-generate", ".tab-nav")
    page.raw.locator(".tab-nav button", has_text="Train").click()
    page.open_all()
    page.field("network_rank").fill("-4")
    expect(page.find("network_rank").locator(".trainer-back")).to_be_visible()
    page.field("dataset_folder").fill("")
    page.find("start").click()
    page.sees(".trainer-notice-error", "things are to be mended")
    expect(page.find("network_rank").locator(".trainer-field-error")).to_be_visible()
    seen["refused"] = findings_of_both_themes(page.raw, "#trainer_page")
    assert {name: found for name, found in seen.items() if found} == {}
    page.raw.add_style_tag(content=".trainer-page .trainer-host span { color: #9ca3af !important; }")
    page.raw.evaluate("document.body.classList.remove('dark')")
    found = findings(page.raw, "#trainer_header", rules=COLOURS)
    assert found and all(line.startswith("color-contrast") for line in found)
