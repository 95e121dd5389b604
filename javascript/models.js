// The tab Models: sliders of blocks, which write the list that the form reads, and ticks of duplicates. `bridge.js`
// polls. It may be run more than once.

(function () {
    "use strict";

    if (window.modelsPage) return;

    const bridge = window.trainerBridge;
    const pages = {};

    const pageOf = (prefix) => (pages[prefix] = pages[prefix] || {ended: "", opened: {}, dragged: {}});
    const isActive = (panel) => panel.dataset.active === "1";
    const prefixOf = (element) => element.closest(".models-page")?.id.replace(/_page$/, "") || "";

    // What a refusal names is marked: the notice holds the ids of the fields of any tool.
    function tend(prefix) {
        window.trainerPage?.markFields(prefix);
        keepOpen(prefix);
        hideWithField(prefix);
        forget(prefix);
    }

    // What stands beside a field that the form hides is hidden with it.
    function hideWithField(prefix) {
        const shown = (id) => bridge.isVisible(document.getElementById(id));
        document.querySelectorAll(`#${prefix}_page [id^="${prefix}_"][id$="_add"]`).forEach((one) => {
            const form = one.closest(`[id^="${prefix}_tool_"]`);
            if (bridge.isVisible(form)) one.style.display = shown(one.id.replace(/_add$/, "")) ? "" : "none";
        });
        document.querySelectorAll(`#${prefix}_page .models-blocks`).forEach((panel) => {
            const form = panel.closest(`[id^="${prefix}_tool_"]`);
            if (bridge.isVisible(form)) panel.hidden = !shown(panel.dataset.field);
        });
    }

    // The lists are read anew after each job; a short one may never have been seen at work.
    function polled(prefix, panel) {
        const page = pageOf(prefix);
        const {job} = panel.dataset;
        if (isActive(panel) || !job || page.ended === job) return;
        page.ended = job;
        bridge.ask(prefix, "listed", {}, {line: "lists", latest: "listed"});
    }

    // -- blocks ----------------------------------------------------------------------------------------------------

    const fieldOf = (panel) => bridge.box(panel.dataset.field);
    const slidersOf = (panel) => [...panel.querySelectorAll("input[type=range]")];
    const exactOf = (slider) => slider.dataset.exact; // its value is rounded to a step

    // The drawing is made anew by the server when the text, the file or the weight has changed.
    function draw(prefix, panel) {
        const name = panel.dataset.field.slice(prefix.length + 1);
        bridge.ask(prefix, `${name}_draw`, {}, {line: name, latest: "draw"});
    }

    let held = null; // the slider that is being dragged, and whether its drawing was made anew meanwhile

    // What a panel shows when its drawing was made anew: a drag is not broken off, and goes on in the next drawing.
    function drawn(field, html, shown) {
        if (held?.field !== field) return html;
        held.stale = true;
        return shown;
    }

    // A drag has ended; `moved`: at another value. What a stale drawing has of the other blocks is not written.
    function release(moved) {
        const {field, stale, slider} = held;
        const panel = slider.closest(".models-blocks");
        held = null;
        if (!stale) {
            if (moved) write(panel);
            return;
        }
        const prefix = prefixOf(panel);
        if (moved) (pageOf(prefix).dragged[field] ||= {})[slider.getAttribute("aria-label")] = slider.value;
        draw(prefix, panel);
    }

    // What was dragged in the drawing before.
    function dragOn(panel, dragged) {
        slidersOf(panel).filter((slider) => slider.getAttribute("aria-label") in dragged).forEach((slider) => {
            slider.value = dragged[slider.getAttribute("aria-label")];
            moved(slider);
        });
        write(panel);
    }

    // A drawing that was made anew is folded again: it stays as it was. One that is opened shows what the field has now.
    function keepOpen(prefix) {
        const {opened, dragged} = pageOf(prefix);
        document.querySelectorAll(`#${prefix}_page .models-blocks`).forEach((panel) => {
            const {field} = panel.dataset;
            if (!panel.dataset.known) {
                panel.dataset.known = "1";
                if (panel.open && !opened[field]) draw(prefix, panel); // by a click that was quicker than this
                panel.open = opened[field] = panel.open || Boolean(opened[field]);
                if (dragged[field]) dragOn(panel, dragged[field]);
                delete dragged[field];
                panel.addEventListener("toggle", () => {
                    if (panel.open && !opened[field]) draw(prefix, panel);
                    opened[field] = panel.open;
                });
            }
        });
    }

    function moved(slider) {
        const panel = slider.closest(".models-blocks");
        const sliders = slidersOf(panel);
        slider.dataset.exact = slider.value;
        slider.parentElement.querySelector("i").textContent = slider.value;
        const line = panel.querySelector("polyline");
        const {width, height} = panel.querySelector("svg").viewBox.baseVal;
        const step = width / sliders.length;
        const [low, high] = [Number(slider.min), Number(slider.max)];
        const place = (one) => (height - 8) * (high - exactOf(one)) / (high - low);
        line.setAttribute("points", sliders.map((one, n) => `${(n + 0.5) * step},${place(one)}`).join(" "));
    }

    function put(panel, text) {
        const field = fieldOf(panel);
        if (field) bridge.put(field, text);
    }

    const write = (panel) => put(panel, slidersOf(panel).map(exactOf).join(","));

    const isSlider = (element) => element.matches?.(".models-blocks input[type=range]");

    document.addEventListener("input", (event) => {
        if (isSlider(event.target)) moved(event.target);
    });

    document.addEventListener("pointerdown", ({target}) => {
        if (isSlider(target)) held = {slider: target, field: target.closest(".models-blocks").dataset.field, stale: false};
    });

    // Where it has moved, "change" comes with it.
    ["pointerup", "pointercancel"].forEach((name) => document.addEventListener(name, () => {
        const ended = held;
        if (ended) setTimeout(() => { if (held === ended) release(false); });
    }));

    document.addEventListener("change", (event) => {
        const {target} = event;
        if (!target.closest) return;
        const panel = target.closest(".models-blocks");
        if (isSlider(target) && held?.slider === target) release(true);
        else if (isSlider(target)) write(panel);
        if (panel && target.matches("select") && target.value) {
            put(panel, target.value);
            setTimeout(() => draw(prefixOf(panel), panel), 100); // gradio has to hear of the text first
        }
        if (target.matches("[data-trash]")) ticked(prefixOf(target));
    });

    document.addEventListener("click", (event) => {
        const button = event.target.closest && event.target.closest(".models-clear");
        if (!button) return;
        const panel = button.closest(".models-blocks");
        put(panel, "");
        setTimeout(() => draw(prefixOf(panel), panel), 100);
    });

    // An option was put back.
    document.addEventListener("trainer-put-back", (event) => {
        const prefix = prefixOf(event.target);
        if (!prefix) return;
        event.target.querySelectorAll(".models-blocks[open]").forEach((panel) => setTimeout(() => draw(prefix, panel), 150));
    });

    // A field was left on which a drawing depends: the text itself, the file or the weight.
    document.addEventListener("focusout", (event) => {
        const prefix = event.target.closest ? prefixOf(event.target) : "";
        const form = prefix && event.target.closest(`[id^="${prefix}_tool_"]`);
        if (!form || event.target.closest(".models-blocks")) return;
        form.querySelectorAll(".models-blocks[open]").forEach((panel) => setTimeout(() => draw(prefix, panel), 150));
    });

    // gradio 3.41 hears of what is written into a list by a key alone, and not of what the mouse has pasted.
    document.addEventListener("input", (event) => {
        const {target} = event;
        if (!target.matches?.(".models-page input") || ["range", "number", "checkbox"].includes(target.type)) return;
        target.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
    });

    // -- duplicates ------------------------------------------------------------------------------------------------

    const chosenOf = (prefix) => [...document.querySelectorAll(`#${prefix}_job [data-trash]:checked`)];

    function ticked(prefix) {
        const chosen = chosenOf(prefix);
        const area = bridge.box(`${prefix}_duplicates_trash`);
        if (area) bridge.put(area, chosen.map((box) => box.dataset.trash).join("\n"));
        pageOf(prefix).ticked = chosen.length > 0;
    }

    // What was ticked is not asked for again where its boxes are gone: a job has begun, or moved the files.
    function forget(prefix) {
        if (pageOf(prefix).ticked && !chosenOf(prefix).length) ticked(prefix);
    }

    window.modelsPage = {draw, drawn};
    bridge.watch({panel: ".models-job[data-prefix]", isActive, polled, tend});
})();
