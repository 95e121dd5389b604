// The training page's clock. gradio 3.41 has no timer: this clicks the page's hidden poll button while somebody looks.
// Loaded by the WebUI from this folder, and by the standalone page; both may run it more than once.

(function () {
    "use strict";

    if (window.trainerPage) return;

    const ACTIVE_MS = 1000; // while a run is active
    const IDLE_MS = 5000; // else: another page may start one, or the host may load another checkpoint
    const PATIENCE_MS = 15000; // a poll without an answer for so long is taken for lost
    const FIRST_PATIENCE_MS = 3000; // the first click may come before gradio listens
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
        window.requestProgress(task, anchor, null, () => refresh(prefix), null, NATIVE_PATIENCE_S);
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
        if (page.probing || now < page.due) return;
        if (page.waitingSince && now - page.waitingSince < (page.answered ? PATIENCE_MS : FIRST_PATIENCE_MS)) return;
        if (page.waitingSince) {
            probe(panel, page);
            return;
        }
        page.waitingSince = now;
        click(prefix, "poll");
    }

    function polled(prefix) {
        const page = pageOf(prefix);
        const panel = document.querySelector(`.trainer-status[data-prefix="${prefix}"]`);
        const active = panel && panel.dataset.active === "1";
        if (!page.answered && !page.touched) click(prefix, "restore"); // never over what somebody has begun to type
        page.answered = true;
        page.waitingSince = 0;
        page.due = Date.now() + (active ? ACTIVE_MS : IDLE_MS);
        if (panel) panel.classList.remove("trainer-offline");
    }

    document.addEventListener("input", (event) => {
        const root = event.isTrusted && event.target.closest && event.target.closest(".trainer-page");
        if (root) pageOf(root.id.replace(/_page$/, "")).touched = true;
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

    // Puts a text at the end of a gradio text box and tells gradio so. `field` is the box's element id.
    function insert(field, text) {
        const area = document.querySelector(`#${field} textarea, #${field} input`);
        if (!area || !text || area.value.includes(text)) return;
        area.value = area.value.trim() ? `${area.value.trimEnd()} ${text}` : text;
        area.dispatchEvent(new Event("input", {bubbles: true}));
    }

    function openTab(label) {
        const buttons = [...document.querySelectorAll(".tab-nav button")];
        const button = buttons.find((candidate) => candidate.textContent.trim() === label);
        if (button) button.click();
    }

    window.trainerPage = {polled, refresh, download, insert, openTab};
    setInterval(() => document.querySelectorAll(".trainer-status").forEach(tend), TICK_MS);
})();
