// The training page's clock. gradio 3.41 has no timer: this clicks the page's hidden poll button while somebody looks.
// Loaded by the WebUI from this folder, and by the standalone page; both may run it more than once.

(function () {
    "use strict";

    if (window.trainerPage) return;

    const ACTIVE_MS = 1000; // while a run is active
    const IDLE_MS = 5000; // else: another page may start one, or the host may load another checkpoint
    const PATIENCE_MS = 15000; // a poll without an answer for so long is taken for lost
    const FIRST_PATIENCE_MS = 3000; // the first click may come before gradio listens
    const PAUSE_MS = 400; // of typing, before the memory is reckoned anew
    const TICK_MS = 250;
    const NATIVE_PATIENCE_S = 40; // how long the WebUI's bar waits for a task that has not begun

    const pages = {};
    const knownTasks = new Set();

    function find(prefix, name) {
        return document.getElementById(prefix + "_" + name);
    }

    function pageOf(prefix) {
        if (!pages[prefix]) {
            pages[prefix] = {visible: false, answered: false, waitingSince: 0, due: 0, probing: false, touched: false};
        }
        return pages[prefix];
    }

    function isVisible(element) {
        return document.visibilityState === "visible" && element.offsetParent !== null;
    }

    function click(prefix, name) {
        const button = find(prefix, name);
        if (button) button.click();
    }

    // After a lost answer the server is asked quietly whether it is there, so that gradio does not show error after error.
    function probe(panel, page) {
        page.probing = true;
        fetch("./app_id", {cache: "no-store"})
            .then((answer) => answer.ok)
            .catch(() => false)
            .then((there) => {
                page.probing = false;
                panel.classList.toggle("trainer-offline", !there);
                page.due = Date.now() + (there ? 0 : IDLE_MS);
                if (there) page.waitingSince = 0;
            });
    }

    function showNativeBar(panel, prefix) {
        const task = panel.dataset.task;
        if (!task || knownTasks.has(task) || typeof window.requestProgress !== "function") return;
        const box = find(prefix, "native");
        const anchor = box && box.querySelector(".trainer-anchor");
        if (!anchor) return;
        knownTasks.add(task);
        const sameClock = () => showOneEstimate(prefix, box);
        window.requestProgress(task, anchor, null, () => refresh(prefix), sameClock, NATIVE_PATIENCE_S);
    }

    // The WebUI reckons the time left from the run's start, preparations and all: it is given our estimate.
    function showOneEstimate(prefix, box) {
        const panel = document.querySelector(`.trainer-status[data-prefix="${prefix}"]`);
        const bar = box.querySelector(".progress");
        if (!panel || !bar) return;
        const known = /\d/.test(panel.dataset.eta || "");
        const ours = known ? ` ETA: ${panel.dataset.eta}` : "";
        const pattern = / ?ETA: [\d:]+/;
        bar.textContent = bar.textContent.replace(pattern, ours);
        document.title = document.title.replace(pattern, ours);
    }

    // What a notice says of a field is said again beside the field, which is marked until it is changed.
    function markFields(prefix) {
        const page = pageOf(prefix);
        const box = find(prefix, "notice");
        const notice = box && box.querySelector(".trainer-notice");
        const number = notice ? notice.outerHTML : "";
        if (page.marked === number) return;
        page.marked = number;
        document.querySelectorAll(`.trainer-invalid[id^="${prefix}_"]`).forEach(unmark);
        if (!notice) return;
        const fields = [];
        notice.querySelectorAll("[data-field]").forEach((told) => {
            const field = told.dataset.field && document.getElementById(told.dataset.field);
            if (!field) return;
            mark(field, told.textContent);
            fields.push(field);
        });
        if (fields.length) show(fields[0]);
    }

    function mark(field, sentence) {
        unmark(field);
        const told = document.createElement("div");
        told.className = "trainer-field-error";
        told.id = `${field.id}_error`;
        told.textContent = sentence;
        field.classList.add("trainer-invalid");
        field.append(told);
        field.querySelectorAll("input, textarea").forEach((input) => {
            input.setAttribute("aria-invalid", "true");
            input.setAttribute("aria-describedby", told.id);
        });
        const folded = field.closest(".trainer-more");
        const label = folded && folded.querySelector(".label-wrap");
        if (label && !label.classList.contains("open")) label.click();
    }

    function unmark(field) {
        field.classList.remove("trainer-invalid");
        field.querySelectorAll(":scope > .trainer-field-error").forEach((told) => told.remove());
        field.querySelectorAll("[aria-invalid]").forEach((input) => {
            input.removeAttribute("aria-invalid");
            input.removeAttribute("aria-describedby");
        });
    }

    function show(field) {
        const place = field.getBoundingClientRect();
        if (place.top < 0 || place.bottom > window.innerHeight) field.scrollIntoView({block: "center"});
    }

    // "Stopping…" is said of a run under way: it goes when that has ended.
    function clearNotice(panel, prefix) {
        if (panel.dataset.active === "1") return;
        const box = find(prefix, "notice");
        if (box) box.querySelectorAll(".trainer-notice-active").forEach((notice) => notice.remove());
    }

    function tend(panel) {
        const prefix = panel.dataset.prefix;
        const page = pageOf(prefix);
        const visible = isVisible(panel);
        const now = Date.now();
        if (visible && !page.visible) page.due = now;
        page.visible = visible;
        if (!visible) return;
        showNativeBar(panel, prefix);
        markFields(prefix);
        clearNotice(panel, prefix);
        if (page.probing || now < page.due) return;
        if (page.waitingSince && now - page.waitingSince < (page.answered ? PATIENCE_MS : FIRST_PATIENCE_MS)) return;
        if (page.waitingSince) {
            probe(panel, page);
            return;
        }
        page.waitingSince = now;
        click(prefix, "poll");
    }

    // The forecast of memory follows the form, when nothing has been changed for a moment.
    function changed(prefix) {
        const page = pageOf(prefix);
        clearTimeout(page.foreseen);
        page.foreseen = setTimeout(() => click(prefix, "foresee"), PAUSE_MS);
    }

    // Another checkpoint, or the end of a run, makes another forecast.
    function foreseeAnew(prefix, active) {
        const page = pageOf(prefix);
        const header = find(prefix, "header");
        const seen = `${header ? header.textContent : ""} ${active}`;
        if (page.foreseenFor !== seen) changed(prefix);
        page.foreseenFor = seen;
    }

    function polled(prefix) {
        const page = pageOf(prefix);
        const panel = document.querySelector(`.trainer-status[data-prefix="${prefix}"]`);
        const active = panel && panel.dataset.active === "1";
        if (!page.answered && !page.touched) { // never over what somebody has begun to type
            page.restoring = Date.now();
            click(prefix, "restore");
        }
        page.answered = true;
        page.waitingSince = 0;
        foreseeAnew(prefix, active);
        page.due = Date.now() + (active ? ACTIVE_MS : IDLE_MS);
        if (panel) panel.classList.remove("trainer-offline");
    }

    document.addEventListener("input", (event) => {
        const root = event.isTrusted && event.target.closest && event.target.closest(".trainer-page");
        if (root) pageOf(root.id.replace(/_page$/, "")).touched = true;
        const field = event.target.closest && event.target.closest(".trainer-invalid");
        if (field) unmark(field);
    });

    function refresh(prefix) {
        pageOf(prefix).due = 0;
    }

    // payload: JSON of {name, text}; empty if there is nothing to save
    function download(payload) {
        if (!payload) return;
        const file = JSON.parse(payload);
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([file.text], {type: "application/toml"}));
        link.download = file.name;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }

    // Puts a text at the end of a gradio text box, where it is not in it, and tells gradio so. `field` is the box's
    // element id. A word may stand in the name of a file, `<lora:zorb:1>`, and still be missing.
    function insert(field, text) {
        const area = document.querySelector(`#${field} textarea, #${field} input`);
        if (!area || !text) return;
        const call = text.startsWith("<");
        const there = call ? area.value : area.value.replace(/<[^>]*>/g, " ");
        if (there.includes(text)) return;
        const before = area.value.trimEnd();
        const gap = call || before.endsWith(",") ? " " : ", ";
        area.value = before ? before + gap + text : text;
        area.dispatchEvent(new Event("input", {bubbles: true}));
    }

    function openTab(label) {
        const buttons = [...document.querySelectorAll(".tab-nav button")];
        const button = buttons.find((candidate) => candidate.textContent.trim() === label);
        if (button) button.click();
    }

    // The last job's values are in the form: what was to be put there meanwhile comes after them.
    function restored(prefix) {
        const page = pageOf(prefix);
        page.restoring = 0;
        if (page.wanted) fill(prefix, ...page.wanted);
    }

    // Puts a text into a field of the form, to stay: the last job's values are no longer put over it.
    function fill(prefix, name, text) {
        const page = pageOf(prefix);
        page.touched = true;
        const waits = page.restoring && Date.now() - page.restoring < PATIENCE_MS;
        page.wanted = waits ? [name, text] : null;
        const box = document.querySelector(`#${prefix}_${name} textarea, #${prefix}_${name} input`);
        if (!box || waits) return;
        box.value = text;
        box.dispatchEvent(new Event("input", {bubbles: true}));
    }

    window.trainerPage = {polled, refresh, changed, restored, fill, download, insert, openTab};
    setInterval(() => {
        document.querySelectorAll(".trainer-status").forEach(tend);
        if (find("generate", "notice")) markFields("generate");
    }, TICK_MS);
})();
