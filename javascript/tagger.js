// The Tagger's sliders, table and cards. What would be written is asked for when the settings have rested; `bridge.js`
// sends it, one request at a time, and polls. It may be run more than once.

(function () {
    "use strict";

    if (window.taggerPage) return;

    const bridge = window.trainerBridge;
    const {find} = bridge;
    const REST_MS = 120; // how long a slider must rest

    const pages = {};

    function pageOf(prefix) {
        pages[prefix] = pages[prefix] || {dirty: 0, active: false, mark: "", folder: "", tag: ""};
        return pages[prefix];
    }

    // gradio's sliders have a number beside them that nothing names.
    function nameNumbers(prefix) {
        document.querySelectorAll(`#${prefix}_page input[type=number]:not([aria-label])`).forEach((box) => {
            const label = box.closest(".block")?.querySelector("label span, label");
            box.setAttribute("aria-label", label ? label.textContent.trim() : "Number");
        });
    }

    function tend(prefix) {
        nameNumbers(prefix);
        const page = pageOf(prefix);
        if (page.dirty && Date.now() - page.dirty >= REST_MS && !bridge.isBusy(prefix)) {
            page.dirty = 0;
            look(prefix);
        }
    }

    // The numbers first; the pictures, which need thumbnails, when they are there.
    function look(prefix, again = false) {
        const {tag} = pageOf(prefix);
        bridge.ask(prefix, "look", {tag, again}, {latest: again ? undefined : "look", done: () => show(prefix)});
        if (!again && bridge.textOf(prefix, "single")) bridge.ask(prefix, "describe", {}, {line: "single", latest: "describe"});
    }

    function show(prefix) {
        bridge.ask(prefix, "show", {tag: pageOf(prefix).tag}, {latest: "show", done: () => shown(prefix)});
    }

    const isActive = (panel) => panel.dataset.active === "1";

    function polled(prefix, panel) {
        const page = pageOf(prefix);
        const mark = find(prefix, "page").querySelector(".tagger-mark")?.dataset.mark || "";
        // a job has ended, or the set was edited elsewhere: there is something new to see
        if ((page.active && !isActive(panel)) || (page.mark && mark !== page.mark)) changed(prefix);
        page.active = isActive(panel);
        page.mark = mark;
    }

    // The folder's box was left: a path is read once it is written, and not while it is.
    function left(prefix) {
        const page = pageOf(prefix);
        const box = bridge.box(`${prefix}_folder`);
        if (!box || box.value === page.folder) return;
        page.folder = box.value;
        changed(prefix);
    }

    // A job was started: the next poll sees it, or its end.
    function hurry(prefix) {
        pageOf(prefix).active = true;
        bridge.hurry(prefix);
    }

    function changed(prefix) {
        pageOf(prefix).dirty = Date.now();
    }

    function prefixOf(element) {
        const root = element.closest(".tagger-page");
        return root ? root.id.replace(/_page$/, "") : "";
    }

    function choose(row) {
        const prefix = prefixOf(row);
        row.parentElement.querySelectorAll(".tagger-chosen").forEach((one) => one.classList.remove("tagger-chosen"));
        row.classList.add("tagger-chosen");
        pageOf(prefix).tag = row.dataset.tag;
        show(prefix);
    }

    const WORDS = {a: "accept", r: "reject", u: "undo"};

    // The answer to a verdict brings the cards as they are now.
    function judge(card, word) {
        const prefix = prefixOf(card);
        card.classList.toggle("tagger-accepted", word === "accept");
        card.classList.toggle("tagger-rejected", word === "reject");
        const verdict = [card.dataset.content, card.dataset.tag, word];
        bridge.ask(prefix, "judge", {verdict, tag: pageOf(prefix).tag}, {done: () => shown(prefix)});
        const next = card.nextElementSibling;
        if (next && word !== "undo") next.focus();
    }

    // The cards were replaced: the one that had the focus has it again.
    function shown(prefix) {
        const card = cardAgain();
        if (card && prefixOf(card) === prefix && document.activeElement === document.body) card.focus();
    }

    let lastCard = null;

    function cardAgain() {
        if (!lastCard || lastCard.isConnected) return lastCard;
        const {content, tag} = lastCard.dataset;
        lastCard = [...document.querySelectorAll(".tagger-card")]
            .find((card) => card.dataset.content === content && card.dataset.tag === tag) || null;
        return lastCard;
    }

    document.addEventListener("focusin", (event) => {
        lastCard = event.target.closest(".tagger-card");
    });

    document.addEventListener("focusout", (event) => {
        const box = event.target.closest && event.target.closest(".tagger-box-folder");
        if (box) left(prefixOf(box));
    });

    document.addEventListener("click", (event) => {
        if (!event.target.closest) return;
        const row = event.target.closest(".tagger-table tr[data-tag]");
        if (row) choose(row);
        const card = event.target.closest(".tagger-card");
        const button = event.target.closest("[data-verdict]");
        if (card && button) judge(card, button.dataset.verdict);
        else if (card) card.focus();
    });

    document.addEventListener("keydown", (event) => {
        const focused = document.activeElement === document.body && lastCard ? cardAgain() : document.activeElement;
        if (event.ctrlKey || event.altKey || event.metaKey || !focused || !focused.matches) return;
        if (focused.matches(".tagger-table tr[data-tag]") && event.key === "Enter") choose(focused);
        if (!focused.matches(".tagger-card")) return;
        const word = WORDS[event.key.toLowerCase()];
        const other = {ArrowRight: focused.nextElementSibling, ArrowLeft: focused.previousElementSibling}[event.key];
        if (word) judge(focused, word);
        else if (other) other.focus();
        else return;
        event.preventDefault();
    });

    window.taggerPage = {hurry, changed, look};
    bridge.watch({panel: ".tagger-job[data-prefix]", isActive, polled, tend});
})();
