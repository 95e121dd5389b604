// The Dataset tab. Panels are HTML from the server; whatever is pressed, typed or dragged there becomes a command.
// `bridge.js` sends them one after the other, so that none overwrites another, and polls.
// Loaded by the WebUI from this folder, and by the standalone page; both may run it more than once.

(function () {
    "use strict";

    if (window.trainerDataset) return;

    const bridge = window.trainerBridge;
    const PATIENCE_MS = 60000; // a large set may take its time
    const TYPING_MS = 300;
    // Which tab of which browser this is: the server keeps what it looks at under this name.
    const session = [...crypto.getRandomValues(new Uint32Array(4))].map((one) => one.toString(16)).join("-");

    let typing = 0;
    let typedIn = null; // where a hint for what is being typed belongs
    let dragged = null;
    let focused = 0; // number of the answer whose wish for the focus was met

    const find = (name) => bridge.find("dataset", name);
    const page = () => find("page");
    const isVisible = () => page() && page().offsetParent !== null;

    function value(id) {
        const element = document.getElementById(id);
        if (!element) return undefined;
        return element.type === "checkbox" ? element.checked : element.value;
    }

    function formValues(form) {
        const values = {};
        if (!form) return values;
        form.querySelectorAll("[name]").forEach((entry) => {
            values[entry.name] = entry.type === "checkbox" ? entry.checked : entry.value;
        });
        return values;
    }

    // What the training form says, where there is one: the check is for that size.
    function trainSize() {
        const sides = ["width", "height"].map((name) => document.querySelector(`#trainer_dataset_${name} input`)?.value);
        return sides.every(Boolean) ? sides : undefined;
    }

    // Of the training form, where there is one: all that decides at which size a picture is trained.
    const SIZES = ["dataset.width", "dataset.height", "buckets.enabled", "buckets.resolutions", "buckets.step",
        "buckets.low", "buckets.high", "buckets.enlarge"];

    function trainSizes() {
        const values = {};
        SIZES.forEach((path) => {
            const entry = document.querySelector(`#trainer_${path.replace(".", "_")} :is(input, textarea)`);
            if (entry) values[path] = entry.type === "checkbox" ? entry.checked : entry.value;
        });
        return values;
    }

    const visibleForm = () => page().querySelector("form.dataset-edit:not([hidden])");

    // What stands in the page's own fields goes along with every command.
    function complete(command) {
        const full = {
            scope: value("dataset_scope"), trigger: value("dataset_trigger"), share: value("dataset_share"),
            protected: value("dataset_protected"), width: value("dataset_width"), height: value("dataset_height"),
            mirrored: value("dataset_mirrored"), train: trainSize(), ...command,
        };
        if (["tab", "as-trained"].includes(command.do)) full.form = trainSizes();
        if (command.do === "buckets") full.sizes = formValues(document.getElementById("dataset_bucket_form"));
        if (command.do === "cache-look") full.days = value("dataset_days");
        if (command.field) full.text = value(command.field);
        if (command.do === "preview") full.values = formValues(visibleForm());
        if (command.do.endsWith("-preview")) {
            full.chosen = [...page().querySelectorAll("[data-choice]:checked")].map((box) => box.value);
        }
        if (command.do === "chip") {
            const chips = page().querySelector(".dataset-chips");
            full.seen = chips ? chips.dataset.seen : "";
        }
        return full;
    }

    // -- what is set and not yet known to the server ------------------------------------------------------------------

    // Panels are replaced as a whole. What was set in one by then is put back where the server still shows what it had
    // shown before (`base`), and where it was set after the command of which this is the answer (`sent`: the last by then).
    const changed = new Map(); // by selector
    let sent = 0;
    let answered = 0;
    const FRESH = {open: "", "as-trained": "#dataset_bucket_form", plan: "[data-choice]", implied: "[data-choice]"};

    const isTick = (box) => box.type === "checkbox";
    const stateOf = (box) => isTick(box) ? box.checked : box.value;

    function baseOf(box) {
        if (box.tagName !== "SELECT") return isTick(box) ? box.defaultChecked : box.defaultValue;
        return ([...box.options].find((one) => one.defaultSelected) || box.options[0])?.value;
    }

    // Not of what is sent as it is entered: the answer says what it has become.
    function selectorOf(box) {
        if (!box.matches("input, select, textarea") || box.matches("[data-enter], [data-new-tag], [data-rewrite]")) return "";
        if (box.id) return `#${box.id}`;
        if (box.dataset.choice !== undefined) return `[data-choice][value="${CSS.escape(box.value)}"]`;
        const form = box.name && box.closest("form");
        return form ? `${form.id ? `#${form.id}` : `form[data-name="${form.dataset.name}"]`} [name="${box.name}"]` : "";
    }

    function note(box) {
        const selector = selectorOf(box);
        if (selector) changed.set(selector, {state: stateOf(box), base: baseOf(box), sent});
    }

    function putBack() {
        changed.forEach((one, selector) => {
            const box = page().querySelector(selector);
            if (!box || box === one.box) return;
            if (answered > one.sent && baseOf(box) !== one.base) {
                changed.delete(selector);
                return;
            }
            Object.assign(one, {box, base: baseOf(box)});
            if (stateOf(box) === one.state) return;
            if (isTick(box)) box.checked = one.state;
            else box.value = one.state;
            showForm(box);
        });
    }

    // An answer begins anew what was set: a list of choices, another set.
    function forget(command) {
        const begun = FRESH[command.do];
        if (begun !== undefined) [...changed.keys()].forEach((one) => { if (one.startsWith(begun)) changed.delete(one); });
    }

    // Of several forms the one that a list has chosen.
    function showForm(box) {
        page().querySelectorAll(`form.${box.dataset.shows}`).forEach((form) => {
            form.hidden = form.dataset.name !== box.value;
        });
    }

    // `options`: of the bridge's `ask`.
    function send(command, options = {}) {
        page().classList.add("dataset-waiting");
        const over = (then) => () => {
            answered = number;
            if (!bridge.isBusy("dataset")) page().classList.remove("dataset-waiting");
            if (then) then();
        };
        const full = complete(command);
        forget(command);
        const number = sent += 1;
        bridge.ask("dataset", "command", {...full, session}, {
            latest: ["check-typed", "poll"].includes(command.do) ? command.do : undefined,
            patience: PATIENCE_MS, done: over(options.done), lost: over(options.lost),
        });
    }

    const marks = () => {
        const element = page().querySelector(".dataset-marks");
        return element ? JSON.parse(element.dataset.marks) : {selected: [], current: "", hint: "", focus: "", number: 0};
    };

    // Runs whenever panels were replaced, however long after the answer gradio does that, and before any further key:
    // what is typed ahead must find its place.
    function settle() {
        putBack();
        const told = marks();
        const selected = new Set(told.selected);
        page().querySelectorAll(".dataset-cell").forEach((cell) => {
            cell.classList.toggle("dataset-selected", selected.has(cell.dataset.key));
            cell.classList.toggle("dataset-current", cell.dataset.key === told.current);
        });
        showHint(told.hint);
        if (!told.focus || (told.number === focused && document.activeElement !== document.body)) return;
        const target = page().querySelector(told.focus) || document.getElementById(told.focus);
        if (!target) return;
        focused = told.number;
        if (document.activeElement !== target) target.focus();
    }

    function showHint(text) {
        const place = typedIn && (typedIn.id === "dataset_filter"
            ? find("filter_hint") : (typedIn.closest("form") || page()).querySelector(".dataset-hint"));
        if (place && place.textContent !== (text || "")) place.textContent = text || "";
    }

    // the panels are replaced under the user's hands: what has the focus, and where its cursor stands, is put back
    function keepFocus(panel) {
        let held = null;
        panel.addEventListener("focusin", (event) => { held = {id: event.target.id, at: null}; });
        panel.addEventListener("keyup", (event) => {
            if (held && event.target.id === held.id) held.at = event.target.selectionStart;
        });
        panel.addEventListener("focusout", (event) => { if (event.target.isConnected) held = null; });
        new MutationObserver(() => {
            if (!held || !held.id || document.activeElement !== document.body) return;
            const again = document.getElementById(held.id);
            if (!again) return;
            again.focus();
            if (held.at !== null && again.setSelectionRange) again.setSelectionRange(held.at, held.at);
        }).observe(panel, {childList: true, subtree: true});
    }

    function rewrite(chip) {
        const label = chip.querySelector("span");
        const box = document.createElement("input");
        box.className = "dataset-input";
        box.value = label.textContent;
        box.dataset.rewrite = chip.dataset.index;
        label.replaceWith(box);
        box.focus();
        box.select();
    }

    function chipCommand(chip, op, more) {
        send({do: "chip", op, index: Number(chip.dataset.index), ...more});
    }

    function onClick(event) {
        const target = event.target;
        const button = target.closest("[data-do]");
        if (button) {
            event.preventDefault();
            send(JSON.parse(button.dataset.do));
            return;
        }
        const cell = target.closest(".dataset-cell");
        if (cell) {
            const mode = event.shiftKey ? "range" : event.ctrlKey || event.metaKey ? "toggle" : "one";
            send({do: "click", key: cell.dataset.key, mode});
        }
    }

    function onKey(event) {
        if (!isVisible() || bridge.isComposing(event)) return;
        const target = event.target;
        const inside = page().contains(target);
        const writes = target.matches && target.matches("input:not([type=checkbox]), textarea, select");
        if (inside && writes) {
            onKeyInBox(event, target);
            return;
        }
        if (writes) return;
        const chip = target.closest && target.closest(".dataset-chip");
        if (chip && onKeyOnChip(event, chip)) return;
        const key = event.key;
        // Space and Enter belong to the button, box or heading that has the focus
        if ((key === " " || key === "Enter") && target.closest && target.closest("button, input, summary, a")) return;
        const command = event.ctrlKey || event.metaKey // with Caps Lock letters come large, and with Shift small again
            ? {z: {do: event.shiftKey ? "redo" : "undo"}, y: {do: "redo"}, a: {do: "select", what: "all"}}[key.toLowerCase()]
            : {ArrowLeft: {do: "move", by: -1}, ArrowRight: {do: "move", by: 1}, Escape: {do: "select", what: "none"},
                " ": {do: "click", key: marks().current, mode: "toggle"}}[key];
        if (command && !event.altKey) send(command);
        else if (key === "PageUp" || key === "PageDown") {
            const buttons = page().querySelectorAll(".dataset-pager button");
            const wanted = buttons[key === "PageUp" ? 0 : 1];
            if (!wanted) return;
            wanted.click();
        } else if (key === "/" && find("filter")) find("filter").focus();
        else if (key === "a" && find("new_tag")) find("new_tag").focus();
        else return;
        event.preventDefault();
    }

    function onKeyInBox(event, box) {
        if (event.key === "Escape") {
            box.blur();
            return;
        }
        const form = box.closest("form.dataset-edit");
        const ours = box.dataset.newTag || box.dataset.rewrite !== undefined || box.dataset.enter || form;
        if (event.key !== "Enter" || !ours) return; // the folder's box is gradio's, which opens the set
        event.preventDefault();
        if (box.dataset.newTag) {
            if (box.value.trim()) send({do: "chip", op: "add", text: box.value, focus: "dataset_new_tag"});
            box.value = "";
        } else if (box.dataset.rewrite !== undefined) {
            send({do: "chip", op: "rename", index: Number(box.dataset.rewrite), text: box.value});
        } else if (box.dataset.enter) send({do: box.dataset.enter, text: box.value});
        else form.querySelector("[data-do]").click();
    }

    function onKeyOnChip(event, chip) {
        const index = Number(chip.dataset.index);
        const at = (place) => `.dataset-chip[data-index="${place}"]`;
        const near = (step) => {
            const other = page().querySelector(at(index + step));
            if (other) other.focus();
        };
        if (event.altKey && event.key === "ArrowLeft") chipCommand(chip, "move", {to: index - 1, focus: at(Math.max(index - 1, 0))});
        else if (event.altKey && event.key === "ArrowRight") chipCommand(chip, "move", {to: index + 1, focus: at(index + 1)});
        else if (event.key === "ArrowLeft") near(-1);
        else if (event.key === "ArrowRight") near(1);
        else if (event.key === "Delete" || event.key === "Backspace") chipCommand(chip, "remove", {focus: at(index)});
        else if (event.key === "Enter") rewrite(chip);
        else return false;
        event.preventDefault();
        return true;
    }

    function onInput(event) {
        const box = event.target;
        note(box);
        if (box.dataset.shows) {
            showForm(box);
            return;
        }
        clearTimeout(typing);
        typing = setTimeout(() => {
            if (box.dataset.typed) send({do: box.dataset.typed, text: box.value});
            const form = box.closest("form.dataset-edit");
            typedIn = box;
            if (box.dataset.check === "filter") send({do: "check-typed", what: "filter", text: box.value});
            else if (form) send({do: "check-typed", what: "edit", edit: form.dataset.name, values: formValues(form)});
        }, TYPING_MS);
    }

    function onDrag(event) {
        const chip = event.target.closest && event.target.closest(".dataset-chip");
        if (event.type === "dragstart") dragged = chip;
        else if (event.type === "dragover" && dragged && chip) event.preventDefault();
        else if (event.type === "drop" && dragged && chip && chip !== dragged) {
            event.preventDefault();
            chipCommand(dragged, "move", {to: Number(chip.dataset.index)});
        }
    }

    function onDoubleClick(event) {
        const chip = event.target.closest(".dataset-chip");
        if (chip) rewrite(chip);
    }

    function attach() {
        const root = page();
        if (!root || root.dataset.attached) return;
        root.dataset.attached = "1";
        keepFocus(root);
        new MutationObserver(settle).observe(root, {childList: true, subtree: true});
    }

    // On the document, as the page may come, and be used, at any moment after this script.
    function listen(name, handler) {
        document.addEventListener(name, (event) => {
            if (!page() || !page().contains(event.target)) return;
            attach();
            handler(event);
        });
    }

    // Opens the training form with the set's folder, by the tabs that lead there. The server has something to say where
    // none is given.
    function train(folder, tabs) {
        send({do: "train", folder}, {done: () => { if (folder.trim()) window.trainerPage.open(folder, ...tabs); }});
    }

    window.trainerDataset = {send, train};
    document.addEventListener("keydown", onKey);
    listen("click", onClick);
    listen("dblclick", onDoubleClick);
    listen("submit", (event) => event.preventDefault());
    listen("input", onInput);
    ["dragstart", "dragover", "drop"].forEach((name) => listen(name, onDrag));
    bridge.watch({
        panel: "#dataset_page",
        prefixOf: () => "dataset",
        idle: Infinity, // another tab may have changed the set: it is seen when this one is looked at again
        isActive: (panel) => Boolean(panel.querySelector("[data-poll]")),
        tend: attach,
        poll: (prefix, options) => Boolean(page().querySelector(".dataset-bar")) && send({do: "poll"}, options),
    });
})();
