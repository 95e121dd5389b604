// Forms of folded sections: a box that finds an option, marks of what has been changed, and ways to put it back.
//
// What must be known of each option stands in the finder (`data-facts`); what is usual for the model that is loaded in
// `.trainer-usual`. Nothing is asked of the server but to put options back. Loaded by the WebUI and the standalone page.

(function () {
    "use strict";

    if (window.trainerForm) return;

    const bridge = window.trainerBridge;
    const LOOK_MS = 400; // between two looks at a form that is seen: values change without events, too
    const OPEN_MS = 60; // until gradio has opened a fold
    const ELSEWHERE = 4; // options that are told of although they are hidden
    const SHORT = 14; // letters of a value in a mark
    const forms = {}; // by prefix

    const escaped = (text) => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);
    const boxOf = (field) => field.querySelector("textarea, input");
    const labelOf = (field) => (field.querySelector("[data-testid=block-info]") || field.querySelector("label > span"))
        ?.textContent.trim() || "";
    const isHidden = (element) => Boolean(element.closest(".hidden, .hide, .trainer-idle")); // not by a fold

    function formOf(prefix) {
        const finder = bridge.find(prefix, "finder")?.querySelector(".trainer-finder");
        if (!finder) return null;
        const known = forms[prefix];
        if (known && known.finder === finder) return known;
        forms[prefix] = {
            prefix, finder, facts: JSON.parse(finder.dataset.facts), usual: {}, idle: new Set(), usualText: "", opened: [], last: null, due: 0,
            undo: false,
        };
        return forms[prefix];
    }

    const formAround = (element) => {
        const root = element.closest?.(".trainer-form");
        return root ? formOf(root.id.replace(/_form$/, "")) : null;
    };
    const fieldAround = (element) => element.closest?.(".trainer-form .trainer-field");

    // -- values ----------------------------------------------------------------------------------------------------

    const baseOf = (form, id) => id in form.usual ? form.usual[id] : form.facts[id].base;

    function shownIn(field) {
        const box = boxOf(field);
        if (!box) return "";
        return box.type === "checkbox" ? String(box.checked) : box.value;
    }

    // Whether a condition of an option's being shown is met, as far as can be seen here.
    function holds(when) {
        const field = document.getElementById(when.id);
        const now = field ? shownIn(field).trim() : "";
        return when.values.includes(now) !== when.negated || when.others.some(holds);
    }

    function isChanged(form, id, field) {
        const now = shownIn(field);
        const base = baseOf(form, id);
        if (boxOf(field)?.type === "number") return now === "" || Number(now) !== Number(base);
        return now.trim() !== base.trim();
    }

    // What the loaded model's own values are has changed: fields that nobody has touched follow, all of them or none.
    function follow(form) {
        const place = bridge.find(form.prefix, "usual")?.querySelector("[data-usual]");
        const text = place ? place.dataset.usual : "";
        if (!text || text === form.usualText) return;
        const {usual: values, idle} = JSON.parse(text);
        const fields = Object.keys(values).map((id) => [id, document.getElementById(id)]).filter(([, field]) => field);
        const own = fields.every(([id, field]) => !isChanged(form, id, field));
        form.usual = values;
        form.idle = new Set(idle);
        form.usualText = text;
        if (own) fields.forEach(([id, field]) => {
            if (isChanged(form, id, field)) bridge.put(boxOf(field), values[id]);
        });
    }

    // -- marks -----------------------------------------------------------------------------------------------------

    function look(form) {
        follow(form);
        const changed = [];
        Object.entries(form.facts).forEach(([id, fact]) => {
            const field = document.getElementById(id);
            if (!field) return;
            // what the model does not read is hidden, unless somebody has set it
            field.classList.toggle("trainer-idle", form.idle.has(id) && !isChanged(form, id, field));
            const now = !fact.first && !isHidden(field) && isChanged(form, id, field);
            mark(form, id, field, now);
            if (now) changed.push(field);
        });
        document.querySelectorAll(`#${form.prefix}_form .trainer-fold`).forEach((fold) => summarise(fold, changed));
        const all = form.finder.querySelector(".trainer-back-all");
        const text = `Put back ${changed.length} changed`;
        if (all.textContent !== text) all.textContent = text;
        all.hidden = !changed.length;
        form.finder.querySelector(".trainer-undo").hidden = !form.undo;
        form.changed = changed.map((field) => form.facts[field.id].path);
    }

    function mark(form, id, field, now) {
        const base = baseOf(form, id);
        let button = field.querySelector(":scope > .trainer-back");
        if (!now) {
            if (button) button.remove();
            field.classList.remove("trainer-changed");
            return;
        }
        if (button && button.dataset.base === base) return;
        button?.remove();
        button = document.createElement("button");
        const told = boxOf(field)?.type === "checkbox" ? (base === "true" ? "on" : "off") : numberAsShown(base) || "empty";
        button.type = "button";
        button.className = "trainer-back";
        button.dataset.base = base;
        button.textContent = `↺ ${short(told)}`;
        button.title = `Put back: ${told}`;
        button.setAttribute("aria-label", `Put back ${labelOf(field)}: ${told}`);
        field.append(button);
        field.classList.add("trainer-changed");
    }

    // 1e-05 is 0.00001 in its box, and 0.0 is 0.
    const numberAsShown = (text) => text.trim() && Number.isFinite(Number(text)) ? String(Number(text)) : text;

    const short = (text) => text.length > SHORT ? `${text.slice(0, SHORT - 1)}…` : text;

    const isIdle = (field) => field.classList.contains("trainer-idle");

    // What stands in the line of a fold: the changed values in it. One that the model leaves nothing of is not there.
    function summarise(fold, changed) {
        const line = lineOf(fold);
        if (!line) return;
        const inside = changed.filter((field) => fold.contains(field));
        const told = inside.map((field) => {
            const box = boxOf(field);
            const label = labelOf(field);
            if (box?.type === "checkbox") return box.checked ? label : `${label}: off`;
            return `${label} ${short(shownIn(field)) || "empty"}`;
        });
        let place = line.querySelector(".trainer-summary");
        if (!place) {
            place = document.createElement("span");
            place.className = "trainer-summary";
            line.insertBefore(place, line.querySelector(".icon"));
        }
        const text = told.join(" · ");
        if (place.textContent !== text) place.textContent = text;
        fold.classList.toggle("trainer-has-changed", inside.length > 0);
        const fields = [...fold.querySelectorAll(".trainer-field")];
        fold.classList.toggle("trainer-emptied", fields.some(isIdle) && fields.every((field) => isIdle(field) || isHidden(field)));
    }

    function askBack(form, body) {
        const done = () => setTimeout(() => { // the values are put in after the answer
            look(form);
            form.finder.closest(".trainer-form").dispatchEvent(new CustomEvent("trainer-put-back", {bubbles: true}));
        }, OPEN_MS);
        bridge.ask(form.prefix, "put_back", body, {line: "put_back", done});
    }

    function putBack(form, paths) {
        askBack(form, {paths});
        form.undo = true;
    }

    function undo(form) {
        form.undo = false;
        askBack(form, {undo: true});
    }

    // -- folds -----------------------------------------------------------------------------------------------------

    const lineOf = (fold) => fold.querySelector(":scope > .label-wrap");
    const isOpen = (fold) => Boolean(lineOf(fold)?.classList.contains("open"));
    const setOpen = (fold, open) => { if (isOpen(fold) !== open) lineOf(fold)?.click(); };

    function foldsAround(element) {
        const found = [];
        for (let fold = element.closest(".trainer-fold"); fold; fold = fold.parentElement.closest(".trainer-fold")) found.push(fold);
        return found;
    }

    // Lets a field be seen: its folds are opened, and a search that leaves it out is ended.
    function reveal(field) {
        const form = formAround(field);
        if (form && form.finder.closest(".trainer-form").classList.contains("trainer-searching")) {
            form.last = field; // its folds stay open
            search(form, "");
        }
        foldsAround(field).forEach((fold) => setOpen(fold, true));
    }

    // gradio 3.41's folds are no buttons: keys do not reach them, and nothing says whether they are open.
    function makeOperable(line) {
        const say = () => line.setAttribute("aria-expanded", String(line.classList.contains("open")));
        line.setAttribute("role", "button");
        line.tabIndex = 0;
        line.addEventListener("keydown", (event) => {
            if (event.target !== line || (event.key !== "Enter" && event.key !== " ")) return;
            event.preventDefault();
            line.click();
        });
        new MutationObserver(say).observe(line, {attributes: true, attributeFilter: ["class"]});
        say();
    }

    // -- search ----------------------------------------------------------------------------------------------------

    function haystack(form, id, field) {
        const help = [...field.querySelectorAll("div")].filter((one) => !one.children.length).map((one) => one.textContent);
        return [labelOf(field), ...help, form.facts[id].words].join(" ").toLowerCase();
    }

    function search(form, text) {
        const root = form.finder.closest(".trainer-form");
        const box = form.finder.querySelector(".trainer-find");
        const words = text.toLowerCase().split(/\s+/).filter(Boolean);
        const was = root.classList.contains("trainer-searching");
        if (box.value !== text) box.value = text;
        if (!was) form.opened = [];
        const found = [];
        const elsewhere = [];
        Object.keys(form.facts).forEach((id) => {
            const field = document.getElementById(id);
            if (!field) return;
            const hit = words.length > 0 && words.every((word) => haystack(form, id, field).includes(word));
            field.classList.toggle("trainer-match", hit && !isHidden(field));
            if (hit) (isHidden(field) ? elsewhere : found).push(field);
        });
        root.classList.toggle("trainer-searching", words.length > 0);
        const folds = [...root.querySelectorAll(".trainer-fold")];
        const wanted = new Set(found.flatMap(foldsAround));
        folds.forEach((fold) => {
            fold.classList.toggle("trainer-unfound", words.length > 0 && !wanted.has(fold));
            if (words.length && wanted.has(fold) && !isOpen(fold)) {
                setOpen(fold, true);
                form.opened.push(fold);
            }
        });
        if (words.length) tell(form, found, elsewhere);
        else if (was) endSearch(form);
    }

    // What the search has opened is closed again, but for where somebody has been.
    function endSearch(form) {
        form.finder.querySelector(".trainer-found").textContent = "";
        const kept = form.last ? foldsAround(form.last) : [];
        form.opened.filter((fold) => !kept.includes(fold)).forEach((fold) => setOpen(fold, false));
        form.opened = [];
        const {last} = form;
        if (kept.length) setTimeout(() => last.scrollIntoView({block: "nearest"}), OPEN_MS);
        form.last = null;
    }

    function tell(form, found, elsewhere) {
        const place = form.finder.querySelector(".trainer-found");
        const count = found.length === 1 ? "1 option" : `${found.length || "No"} options`;
        const hidden = elsewhere.slice(0, ELSEWHERE).map((field) => {
            const unmet = (form.facts[field.id].when || []).filter((when) => !holds(when));
            const told = unmet.map((when) => when.told).join(", ") || "with this model";
            const go = unmet.map(({id}) => id).filter((id) => !isHidden(document.getElementById(id))).slice(0, 1)
                .map((id) => `<button type="button" class="trainer-small" data-go="${escaped(id)}">Show that</button>`);
            return `<li><b>${escaped(labelOf(field))}</b> ${escaped(told)} ${go.join("")}</li>`;
        });
        const more = elsewhere.length > hidden.length ? `<li>and ${elsewhere.length - hidden.length} more</li>` : "";
        const rest = hidden.length ? `<div>Without effect, and hidden, as the form stands:</div><ul>${hidden.join("")}${more}</ul>` : "";
        place.innerHTML = `<div>${count}</div>${rest}`;
    }

    // -- events ----------------------------------------------------------------------------------------------------

    document.addEventListener("input", (event) => {
        const form = formAround(event.target);
        if (!form) return;
        if (event.target.classList.contains("trainer-find")) search(form, event.target.value);
        else form.due = 0;
        if (event.isTrusted && fieldAround(event.target)) form.undo = false;
    });
    document.addEventListener("focusin", (event) => {
        const form = formAround(event.target);
        const field = form && fieldAround(event.target);
        if (field) form.last = field;
    });
    document.addEventListener("keydown", (event) => {
        if (!event.target.classList?.contains("trainer-find") || bridge.isComposing(event)) return;
        const form = formAround(event.target);
        if (event.key === "Escape") search(form, "");
        if (event.key === "Enter") {
            event.preventDefault();
            const first = document.querySelector(`#${form.prefix}_form .trainer-match`);
            if (first) boxOf(first)?.focus();
        }
    });
    document.addEventListener("click", (event) => {
        const button = event.target.closest?.(".trainer-form button");
        const form = button && formAround(button);
        if (!form) return;
        if (button.classList.contains("trainer-back")) putBack(form, [form.facts[button.parentElement.id].path]);
        else if (button.classList.contains("trainer-back-all")) putBack(form, form.changed);
        else if (button.classList.contains("trainer-undo")) undo(form);
        else if (button.dataset.go) {
            const field = document.getElementById(button.dataset.go);
            reveal(field);
            setTimeout(() => {
                field.scrollIntoView({block: "center"});
                boxOf(field)?.focus();
            }, OPEN_MS);
        }
    });

    bridge.everyTick(() => {
        const now = Date.now();
        document.querySelectorAll(".trainer-finder").forEach((finder) => {
            const form = formOf(finder.dataset.prefix);
            if (!form || now < form.due || !bridge.isVisible(finder)) return;
            form.due = now + LOOK_MS;
            look(form);
        });
        document.querySelectorAll(".trainer-page div.label-wrap:not([role])").forEach(makeOperable);
    });

    // Also before the last job is put into the form: values that are in it by then would be taken for untouched ones.
    function followNow(prefix) {
        const form = formOf(prefix);
        if (form) follow(form);
    }

    // gradio's nothing is null in one component, and an empty text or list in another.
    const plain = (value) => JSON.stringify(value === null || value === undefined || value.length === 0 ? "" : value);

    // What each component shows when the server's values are there: `told` is JSON of that and of what it may show by now,
    // `shown`, where nobody has changed it, or null where it stays: what somebody has set meanwhile stays, too.
    function under(prefix, told, shown) {
        if (!told) return shown;
        setTimeout(() => decide(prefix), OPEN_MS);
        return JSON.parse(told).map((one, place) => {
            const own = plain(shown[place]);
            return one && one[1].some((unset) => plain(unset) === own) ? one[0] : shown[place];
        });
    }

    // An option has changed that shows or hides others.
    function decide(prefix) {
        bridge.ask(prefix, "visible", {}, {line: "visible", latest: "visible"});
    }

    window.trainerForm = {reveal, followNow, under, decide};
})();
