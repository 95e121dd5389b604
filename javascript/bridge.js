// What the pages' scripts share: one queue of requests, one clock, and the ways into gradio's boxes, buttons and tabs.
//
// gradio 3.41 has no timer and no calls from a script. A request presses a hidden button; as gradio gathers the button's
// inputs it asks `taken` for the request, which carries a number; the answer brings the number back (`answered`). Requests
// of one line wait for each other, so that none overtakes another and a late answer is not taken for the next one's.
// Loaded by the WebUI from this folder, before the other scripts, and by the standalone page; both may run it again.

(function () {
    "use strict";

    if (window.trainerBridge) return;

    const TICK_MS = 60;
    const ACTIVE_MS = 800; // between polls while a job runs
    const IDLE_MS = 4500; // else: another page may start one, or the host may load another checkpoint
    const PATIENCE_MS = 15000; // an answer that takes longer is taken for lost
    const UNHEARD_MS = 1000; // a press that came before gradio listened is repeated

    const lines = {}; // of requests, by page and name of the line
    const pages = {}; // by prefix
    const watches = [];
    const ticks = [];
    let nonce = Date.now(); // also another one after a reload

    // -- gradio's components ---------------------------------------------------------------------------------------

    const find = (prefix, name) => document.getElementById(`${prefix}_${name}`);
    const box = (id) => document.querySelector(`#${id} textarea, #${id} input`);
    const textOf = (prefix, name) => box(`${prefix}_${name}`)?.value || "";
    const isVisible = (element) => document.visibilityState === "visible" && Boolean(element && element.offsetParent);

    // Writes a text box, and tells gradio so.
    function put(area, text) {
        area.value = text;
        area.dispatchEvent(new Event("input", {bubbles: true}));
    }

    // Whether a text is in another one, and no part of a longer word there.
    function holdsWord(whole, text) {
        const literal = text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        return new RegExp(`(?:^|[^\\p{L}\\p{N}_])${literal}(?:$|[^\\p{L}\\p{N}_])`, "u").test(whole);
    }

    // A key that belongs to an input method: with Enter it takes a word that is being put together, as in Chinese.
    const isComposing = (event) => event.isComposing || event.keyCode === 229;

    // Whether a prompt calls the file of a call, `<lora:zorb:1>`, with whatever weights.
    function callsFile(whole, call) {
        const start = call.match(/^<[^:>]+:[^:>]+/)?.[0] || call;
        return [":", ">"].some((end) => whole.includes(start + end)) || whole.includes(call);
    }

    // Puts a text at the end of a box, where it is not in it; a file that is called with another weight keeps that. A word
    // may stand in the name of a file, `<lora:zorb:1>`, and still be missing.
    function insert(id, text) {
        const area = box(id);
        if (!area || !text) return;
        const call = /^<[^<>]*>$/.test(text); // and nothing else: a prompt may have calls, too
        const there = text.includes("<") ? area.value : area.value.replace(/<[^>]*>/g, " ");
        if (call ? callsFile(there, text) : holdsWord(there, text)) return;
        const before = area.value.trimEnd();
        const gap = call || before.endsWith(",") ? " " : ", ";
        put(area, before ? before + gap + text : text);
    }

    // The tab whose panel has this id. Its label may be translated; gradio 3.41 names no buttons, but has as many as panels.
    function openTab(id) {
        const panel = document.getElementById(id);
        const bar = panel && panel.parentElement.querySelector(":scope > .tab-nav");
        const panels = panel ? [...panel.parentElement.children].filter((one) => one.classList.contains("tabitem")) : [];
        const button = document.getElementById(`${id}-button`)
            || (bar && bar.querySelectorAll(":scope > button")[panels.indexOf(panel)]);
        if (button) button.click();
        return Boolean(button);
    }

    // payload: JSON of {name, text}; empty if there is nothing to save
    function download(payload) {
        if (!payload) return;
        const file = JSON.parse(payload);
        const type = file.name.endsWith(".html") ? "text/html" : "application/toml";
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([file.text], {type}));
        link.download = file.name;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }

    // -- requests --------------------------------------------------------------------------------------------------

    // Asks the server. `latest`: one with the same value that still waits is replaced. `done` and `lost`: called when the
    // answer is there, or is not to be expected any more. `line`: requests of other lines do not wait for this one.
    function ask(prefix, name, body, {line = "", latest, patience = PATIENCE_MS, done, lost} = {}) {
        const key = `${prefix}/${line}`;
        lines[key] = lines[key] || {waiting: [], sent: null, heard: ""};
        const {waiting} = lines[key];
        const same = latest ? waiting.findIndex((one) => one.name === name && one.latest === latest) : -1;
        if (same >= 0) waiting.splice(same, 1);
        waiting.push({prefix, name, body, latest, patience, done, lost});
        send(lines[key]);
    }

    function send(line) {
        const now = Date.now();
        if (line.sent && !line.sent.taken && now - line.sent.since > UNHEARD_MS) {
            line.sent.since = now;
            find(line.sent.prefix, line.sent.name)?.click();
        }
        if (line.sent && now - line.sent.since > line.sent.patience) {
            const {lost} = line.sent;
            line.sent = null;
            if (lost) lost();
        }
        if (line.sent || !line.waiting.length) return;
        const button = find(line.waiting[0].prefix, line.waiting[0].name);
        if (!button) return;
        line.sent = line.waiting.shift();
        line.sent.since = now;
        line.sent.nonce = String(nonce += 1);
        button.click();
    }

    const lineOf = (prefix, name) => Object.values(lines)
        .find(({sent}) => sent && sent.prefix === prefix && sent.name === name);

    // gradio gathers a button's inputs (the outputs follow them): the first is the request. `heard`: the last answer.
    function taken(prefix, name, values, count) {
        const line = lineOf(prefix, name);
        if (line) Object.assign(line.sent, {taken: true, since: Date.now()});
        const request = line ? JSON.stringify({...line.sent.body, nonce: line.sent.nonce, heard: line.heard}) : "{}";
        return [request, ...values.slice(1, count)];
    }

    function answered(prefix, name, number) {
        const line = lineOf(prefix, name);
        if (!line || line.sent.nonce !== number) return; // of one that was given up
        const {done} = line.sent;
        line.sent = null;
        line.heard = number;
        if (done) done();
        send(line);
    }

    function isBusy(prefix, line = "") {
        const known = lines[`${prefix}/${line}`];
        return Boolean(known && (known.sent || known.waiting.length));
    }

    // -- the clock -------------------------------------------------------------------------------------------------

    function pageOf(prefix) {
        pages[prefix] = pages[prefix] || {visible: false, due: 0, active: false, polling: false, probing: false};
        return pages[prefix];
    }

    // Polls while somebody looks at `panel` (a selector). `prefixOf(panel)`: its page, data-prefix as a rule.
    // `isActive(panel)`: whether a job runs. `polled(prefix, panel)`: an answer is there. `tend(prefix, panel)`: at every
    // tick while it is visible. `poll(prefix, options)`: asks what is not called "poll", or answers false where there is
    // nothing to ask. `idle`: milliseconds between polls while nothing runs.
    function watch(watched) {
        watches.push({idle: IDLE_MS, prefixOf: (panel) => panel.dataset.prefix, ...watched});
    }

    function panelOf(watched, prefix) {
        return [...document.querySelectorAll(watched.panel)].find((panel) => watched.prefixOf(panel) === prefix);
    }

    function tendAll(watched) {
        document.querySelectorAll(watched.panel).forEach((panel) => {
            const prefix = watched.prefixOf(panel);
            const page = pageOf(prefix);
            const visible = isVisible(panel);
            const now = Date.now();
            if (visible && !page.visible) page.due = now;
            page.visible = visible;
            if (!visible) return;
            if (watched.tend) watched.tend(prefix, panel);
            if (watched.isActive(panel) && !page.active) page.due = Math.min(page.due, now + ACTIVE_MS);
            page.active = watched.isActive(panel);
            if (!page.polling && !page.probing && now >= page.due) poll(watched, prefix, page);
        });
    }

    function poll(watched, prefix, page) {
        page.polling = true;
        const options = {
            line: "poll",
            done: () => {
                page.polling = false;
                const panel = panelOf(watched, prefix);
                if (!panel) return;
                panel.classList.remove("trainer-offline");
                page.active = watched.isActive(panel);
                page.due = Date.now() + (page.active ? ACTIVE_MS : watched.idle);
                if (watched.polled) watched.polled(prefix, panel);
            },
            lost: () => probe(watched, prefix, page),
        };
        if (!watched.poll) ask(prefix, "poll", {}, options);
        else if (watched.poll(prefix, options) === false) {
            page.polling = false;
            page.due = Date.now() + watched.idle;
        }
    }

    // After a lost answer the server is asked quietly whether it is there, so that gradio does not show error after error.
    function probe(watched, prefix, page) {
        page.polling = false;
        page.probing = true;
        fetch("./app_id", {cache: "no-store"})
            .then((answer) => answer.ok)
            .catch(() => false)
            .then((there) => {
                page.probing = false;
                page.due = Date.now() + (there ? 0 : IDLE_MS);
                panelOf(watched, prefix)?.classList.toggle("trainer-offline", !there);
            });
    }

    // There is something to see: the next poll does not wait.
    function hurry(prefix) {
        pageOf(prefix).due = 0;
    }

    window.trainerBridge = {
        find, box, textOf, put, insert, isVisible, openTab, download, ask, taken, answered, isBusy, watch, hurry, isComposing,
        everyTick: (action) => ticks.push(action),
    };
    setInterval(() => {
        Object.values(lines).forEach(send);
        watches.forEach(tendAll);
        ticks.forEach((action) => action());
    }, TICK_MS);
})();
