// The training page: the host's own progress bar, what is said beside fields, and what is put into the form.
// `bridge.js` polls. Loaded by the WebUI from this folder, and by the standalone page; both may run it more than once.

(function () {
    "use strict";

    if (window.trainerPage) return;

    const bridge = window.trainerBridge;
    const {find} = bridge;
    const PAUSE_MS = 400; // of typing, before the memory is reckoned anew
    const OPEN_MS = 60; // until gradio has opened the folds around a field
    const NATIVE_PATIENCE_S = 40; // how long the WebUI's bar waits for a task that has not begun

    const pages = {};
    const knownTasks = new Set();

    function pageOf(prefix) {
        pages[prefix] = pages[prefix] || {answered: false, touched: false};
        return pages[prefix];
    }

    function showNativeBar(panel, prefix) {
        const task = panel.dataset.task;
        if (!task || knownTasks.has(task) || typeof window.requestProgress !== "function") return;
        const box = find(prefix, "native");
        const anchor = box && box.querySelector(".trainer-anchor");
        if (!anchor) return;
        knownTasks.add(task);
        const sameClock = () => showOneEstimate(prefix, box);
        window.requestProgress(task, anchor, null, () => bridge.hurry(prefix), sameClock, NATIVE_PATIENCE_S);
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
        if (fields.length) setTimeout(() => show(fields[0]), OPEN_MS);
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
        window.trainerForm.reveal(field);
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

    function tend(prefix, panel) {
        showNativeBar(panel, prefix);
        markFields(prefix);
        clearNotice(panel, prefix);
    }

    // The forecast of memory follows the form, when nothing has been changed for a moment.
    function changed(prefix) {
        const page = pageOf(prefix);
        clearTimeout(page.foreseen);
        page.foreseen = setTimeout(() => bridge.ask(prefix, "foresee", {}, {line: "foresee", latest: "foresee"}), PAUSE_MS);
    }

    // Another checkpoint, or the end of a run, makes another forecast.
    function foreseeAnew(prefix, active) {
        const page = pageOf(prefix);
        const header = find(prefix, "header");
        const seen = `${header ? header.textContent : ""} ${active}`;
        if (page.foreseenFor !== seen) changed(prefix);
        page.foreseenFor = seen;
    }

    function polled(prefix, panel) {
        const page = pageOf(prefix);
        if (!page.answered && !page.touched) { // never over what somebody has begun to type
            window.trainerForm?.followNow(prefix);
            bridge.ask(prefix, "restore", {}, {line: "restore"}); // what is set until it is there stays, too
        }
        page.answered = true;
        foreseeAnew(prefix, isActive(panel));
    }

    const isActive = (panel) => panel.dataset.active === "1";

    document.addEventListener("input", (event) => {
        const root = event.isTrusted && event.target.closest && event.target.closest(".trainer-page");
        if (root) pageOf(root.id.replace(/_page$/, "")).touched = true;
        const field = event.target.closest && event.target.closest(".trainer-invalid");
        if (field) unmark(field);
    });

    // Puts a text into a field of the form, to stay: the last job's values are no longer put over it.
    function fill(prefix, name, text) {
        pageOf(prefix).touched = true;
        const area = bridge.box(`${prefix}_${name}`);
        if (area) bridge.put(area, text);
    }

    // Opens the form with a set's folder. In the WebUI it is a sub-tab of Train, or a tab of its own.
    function open(folder, ...tabs) {
        if (folder) fill("trainer", "dataset_folder", folder);
        tabs.forEach(bridge.openTab);
    }

    window.trainerPage = {changed, fill, open, markFields};
    bridge.watch({panel: ".trainer-status[data-prefix]", isActive, polled, tend});
    bridge.everyTick(() => { if (find("generate", "notice")) markFields("generate"); });
})();
