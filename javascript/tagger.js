// The Tagger's clock and keys. gradio 3.41 has no timer: this clicks hidden buttons, `poll` while a job runs and
// `refresh` when the settings have rested, one request at a time. It may be run more than once.

(function () {
    "use strict";

    if (window.taggerPage) return;

    const ACTIVE_MS = 700; // while a job runs
    const IDLE_MS = 4000; // else: another page may start one
    const REST_MS = 120; // how long a slider must rest
    const PATIENCE_MS = 15000; // an answer that takes longer is taken for lost
    const TICK_MS = 60;

    const pages = {};

    function find(prefix, name) {
        return document.getElementById(`${prefix}_${name}`);
    }

    function pageOf(prefix) {
        if (!pages[prefix]) {
            pages[prefix] = {due: 0, pollSince: 0, dirty: 0, lookSince: 0, active: false, mark: "", folder: "", judging: []};
        }
        return pages[prefix];
    }

    function click(prefix, name) {
        const button = find(prefix, name);
        if (button) button.click();
    }

    // Writes a hidden gradio text box so that gradio knows of it.
    function put(prefix, name, text) {
        const area = document.querySelector(`#${prefix}_${name} textarea, #${prefix}_${name} input`);
        if (!area) return;
        area.value = text;
        area.dispatchEvent(new Event("input", {bubbles: true}));
    }

    // gradio's sliders have a number beside them that nothing names.
    function nameNumbers(prefix) {
        document.querySelectorAll(`#${prefix}_page input[type=number]:not([aria-label])`).forEach((box) => {
            const label = box.closest(".block")?.querySelector("label span, label");
            box.setAttribute("aria-label", label ? label.textContent.trim() : "Number");
        });
    }

    function tend(panel) {
        const prefix = panel.dataset.prefix;
        nameNumbers(prefix);
        const page = pageOf(prefix);
        const now = Date.now();
        if (document.visibilityState !== "visible" || !find(prefix, "page")?.offsetParent) return;
        if (now >= page.due && (!page.pollSince || now - page.pollSince > PATIENCE_MS)) {
            page.pollSince = now;
            click(prefix, "poll");
        }
        if (page.judging.length && now - page.judgeSince > PATIENCE_MS) judged(prefix); // its answer is lost
        const waiting = page.lookSince && now - page.lookSince < PATIENCE_MS;
        if (page.dirty && now - page.dirty >= REST_MS && !waiting) {
            page.dirty = 0;
            page.lookSince = now;
            click(prefix, "refresh");
        }
    }

    function polled(prefix) {
        const page = pageOf(prefix);
        const panel = document.querySelector(`.tagger-job[data-prefix="${prefix}"]`);
        const active = Boolean(panel && panel.dataset.taggerActive === "1");
        page.pollSince = 0;
        page.due = Date.now() + (active ? ACTIVE_MS : IDLE_MS);
        const mark = find(prefix, "page").querySelector(".tagger-mark")?.dataset.mark || "";
        // a job has ended, or the set was edited elsewhere: there is something new to see
        if ((page.active && !active) || (page.mark && mark !== page.mark)) changed(prefix);
        page.active = active;
        page.mark = mark;
    }

    // The folder's box was left: a path is read once it is written, and not while it is.
    function left(prefix) {
        const page = pageOf(prefix);
        const box = document.querySelector(`#${prefix}_folder textarea, #${prefix}_folder input`);
        if (!box || box.value === page.folder) return;
        page.folder = box.value;
        changed(prefix);
    }

    function hurry(prefix) {
        pageOf(prefix).due = 0;
        pageOf(prefix).active = true;
    }

    function changed(prefix) {
        pageOf(prefix).dirty = Date.now();
    }

    function refreshed(prefix) {
        pageOf(prefix).lookSince = 0;
    }

    function prefixOf(element) {
        const root = element.closest(".tagger-page");
        return root ? root.id.replace(/_page$/, "") : "";
    }

    function choose(row) {
        const prefix = prefixOf(row);
        row.parentElement.querySelectorAll(".tagger-chosen").forEach((one) => one.classList.remove("tagger-chosen"));
        row.classList.add("tagger-chosen");
        put(prefix, "tag", row.dataset.tag);
        setTimeout(() => click(prefix, "show"), 30); // gradio takes the text first
    }

    const WORDS = {a: "accept", r: "reject", u: "undo"};

    // Verdicts are sent one after another, each after the answer to the one before: the text box holds one at a time.
    function judge(card, word) {
        const prefix = prefixOf(card);
        card.classList.toggle("tagger-accepted", word === "accept");
        card.classList.toggle("tagger-rejected", word === "reject");
        pageOf(prefix).judging.push(JSON.stringify([card.dataset.content, card.dataset.tag, word]));
        if (pageOf(prefix).judging.length === 1) sendVerdict(prefix);
        const next = card.nextElementSibling;
        if (next && word !== "undo") next.focus();
    }

    function sendVerdict(prefix) {
        const page = pageOf(prefix);
        if (!page.judging.length) return;
        page.judgeSince = Date.now();
        put(prefix, "verdict", page.judging[0]);
        setTimeout(() => click(prefix, "judge"), 30); // gradio takes the text first
    }

    function judged(prefix) {
        pageOf(prefix).judging.shift();
        if (pageOf(prefix).judging.length) sendVerdict(prefix);
        else click(prefix, "show"); // the cards as they are now
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

    window.taggerPage = {polled, hurry, changed, refreshed, shown, judged};
    setInterval(() => document.querySelectorAll(".tagger-job").forEach(tend), TICK_MS);
})();
