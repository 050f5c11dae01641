// What the page does in the browser: its forms, files, tokens and keys. No request but Gradio's own.
window.sightline = (() => {
  "use strict";

  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) made.setAttribute(name, "");
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  // Forms

  // Text with `names` set as code.
  function written(text) {
    return text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));
  }

  const shortened = (text) => (text.length > 20 ? `${text.slice(0, 19)}\u2026` : text);

  function isSame(text, other) {
    const numbers = [text, other].map((one) => (one.trim() === "" ? NaN : Number(one)));
    return text === other || numbers[0] === numbers[1];
  }

  const INPUTS = {
    slider(control, text, id, changed) {
      const range = make("input", {
        type: "range", min: control.low, max: control.high, step: control.step,
        "aria-label": `${control.label}, slider`, value: text,
      });
      const number = make("input", {
        id, type: "text", inputmode: "decimal", autocomplete: "off", value: text,
        "aria-describedby": `${id}-says`,
      });
      range.addEventListener("input", () => changed((number.value = range.value)));
      number.addEventListener("input", () => {
        if (number.value.trim() && !Number.isNaN(Number(number.value))) range.value = number.value;
        changed(number.value);
      });
      return [number, range];
    },
    checkbox(control, text, id, changed) {
      const box = make("input", {
        id, type: "checkbox", checked: text === "true", "aria-describedby": `${id}-says`,
      });
      box.addEventListener("change", () => changed(String(box.checked)));
      return [box];
    },
    choice(control, text, id, changed) {
      const options = control.choices.map((one) =>
        make("option", { value: one, selected: one === text }, one));
      const list = make("select", { id, "aria-describedby": `${id}-says` }, ...options);
      list.addEventListener("change", () => changed(list.value));
      return [list];
    },
    text(control, text, id, changed) {
      const long = control.default.length > 30;
      const field = make(long ? "textarea" : "input", {
        id, rows: long ? 3 : null, autocomplete: "off", placeholder: control.wanted,
        "aria-describedby": `${id}-says`,
      });
      field.value = text;
      field.addEventListener("input", () => changed(field.value));
      return [field];
    },
  };

  function field(control, text, id, changed) {
    const inputs = INPUTS[control.form](control, text, id, changed);
    const hint = control.form === "checkbox" || control.form === "choice" ? "" : control.wanted;
    return make("div", { class: `field ${control.form}` },
      make("label", { for: id }, control.label), ...inputs,
      make("small", { id: `${id}-says` }, ...written(control.meaning),
        hint ? ` (${hint})` : ""));
  }

  function form(element, props, watch) {
    const draw = () => element.querySelector(".fields").replaceChildren(
      ...props.controls.map((control) =>
        field(control, props.value[control.name] ?? control.default, `${props.form}-${control.name}`,
          (text) => { props.value = { ...props.value, [control.name]: text }; })));
    watch("value", draw);
    draw();
  }

  // A column: a decoder and its settings. The value is {name, settings, is_shown}.
  function way(element, props, watch) {
    const root = element.querySelector(".way");
    const column = element.closest(".way-column");
    const id = `way-${props.place}`;
    const entry = () => props.offer[props.value.name] ?? { controls: [], meaning: "", begins: {} };
    const set = (changes) => { props.value = { ...props.value, ...changes }; };
    let open = false;

    function summary() {
      const changed = Object.entries(props.value.settings);
      return changed.length
        ? changed.map(([name, text]) => `${name} ${shortened(text)}`).join(", ") : "at their defaults";
    }

    function settings() {
      const controls = entry().controls;
      if (!controls.length) return make("p", { class: "none" }, "No settings.");
      const told = make("span", {}, summary());
      const fields = controls.map((control) =>
        field(control, props.value.settings[control.name] ?? control.default,
          `${id}-${control.name}`, (text) => {
            const { [control.name]: _, ...others } = props.value.settings;
            set({ settings: isSame(text, control.default)
              ? others : { ...others, [control.name]: text } });
            told.textContent = summary();
          }));
      const reset = make("button", { type: "button", class: "minor" }, "Reset the settings");
      reset.addEventListener("click", () => { set({ settings: { ...entry().begins } }); draw(); });
      const details = make("details", { open },
        make("summary", {}, "Settings ", told), make("div", { class: "fields" }, ...fields), reset);
      details.addEventListener("toggle", () => { open = details.open; });
      return details;
    }

    function draw() {
      column.hidden = !props.value.is_shown;
      column.dataset.isShown = props.value.is_shown;
      const names = Object.keys(props.offer);
      const list = make("select", { id }, ...names.map((name) =>
        make("option", { value: name, selected: name === props.value.name }, name)));
      list.addEventListener("change", () => {
        set({ name: list.value, settings: { ...props.offer[list.value].begins } });
        draw();
        root.querySelector("select").focus();
      });
      const remove = make("button", {
        type: "button", class: "minor", "data-remove": true,
        "aria-label": `Remove ${props.value.name}`,
      }, "Remove");
      remove.addEventListener("click", () => { show(false); addButton()?.focus(); });
      const { paper, url, meaning } = entry();
      const source = url ? make("a", { href: url, target: "_blank", rel: "noopener" }, paper) : paper;
      root.replaceChildren(
        make("div", { class: "choose" },
          make("label", { for: id }, `Decoder ${props.place + 1}`), list, remove),
        make("p", { class: "meaning" }, ...written(meaning)),
        make("p", { class: "paper" }, source ?? ""),
        settings());
      count();
    }

    function show(isShown) {
      set({ is_shown: isShown });
      draw();
    }

    columns.set(column, show);
    watch("value", draw);
    draw();
  }

  // Columns

  const LEAST = 2;
  const columns = new Map(); // element -> show(isShown)
  const addButton = () => document.getElementById("add-way");
  const shown = () => [...columns.keys()].filter((column) => column.isConnected && !column.hidden);

  function count() {
    const there = [...columns.keys()].filter((column) => column.isConnected);
    const many = shown().length;
    for (const column of there) {
      const remove = column.querySelector("[data-remove]");
      if (remove) remove.hidden = many <= LEAST;
    }
    if (addButton()) addButton().disabled = many >= there.length;
    there[0]?.parentElement.style.setProperty("--columns", many);
  }

  function add(element) {
    element.addEventListener("click", (event) => {
      if (!event.target.closest("#add-way")) return;
      const column = [...columns.keys()].find((one) => one.isConnected && one.hidden);
      if (!column) return;
      columns.get(column)(true);
      column.querySelector("select").focus();
    });
    count();
  }

  // Files

  // A file goes to the server, which opens it, and an event says which: {name, size, token}. What is
  // too large, or did not arrive, has no token, and the server says so.
  async function send(file, kind, largest, event, trigger) {
    const sent = { name: file.name, size: file.size };
    try {
      if (file.size && file.size <= largest) {
        const headers = { "content-type": "application/octet-stream" };
        const reply = await fetch(`sightline/files?kind=${kind}`,
          { method: "POST", body: file, headers });
        sent.status = reply.status;
        if (reply.ok) sent.token = (await reply.json()).token;
      }
    } catch { /* without a token */ }
    trigger(event, sent);
  }

  function onFile(input, take) {
    input.addEventListener("change", () => {
      if (input.files.length) take(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    });
  }

  // Whether it worked. A page that is not served by this machine or by https has no clipboard.
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  }

  function files(element, trigger, props, watch, largest) {
    onFile(element.querySelector("#load"),
      (file) => send(file, "comparison", largest, "loaded", trigger));
    element.querySelector("#save").addEventListener("click", () => trigger("saved", {}));
    element.querySelector("#copy").addEventListener("click", async () => {
      const script = document.querySelector("#script").textContent;
      if (!script) return trigger("empty", {});
      const told = element.querySelector("[role=status]");
      told.textContent = (await copy(script)) ? "Copied." : "Not copied: it stands below.";
      setTimeout(() => { told.textContent = ""; }, 4000);
    });
    watch("value", () => {
      if (!props.value?.text) return;
      const url = URL.createObjectURL(new Blob([props.value.text], { type: "application/json" }));
      make("a", { href: url, download: props.value.name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    });
  }

  // The image: chosen, dropped, pasted, taken, or one of the lab's.
  function image(element, trigger, largest) {
    const take = (file) => send(file, "image", largest, "chosen", trigger);
    onFile(element.querySelector("input[type=file]"), take);
    element.addEventListener("click", (event) => {
      const shipped = event.target.closest("[data-name]");
      if (shipped) trigger("shipped", { name: shipped.dataset.name });
      if (event.target.closest("#new-scene")) trigger("scene", {});
      if (event.target.closest("#webcam")) webcam(element.querySelector("dialog"), take);
    });
    element.addEventListener("dragover", (event) => {
      event.preventDefault();
      element.classList.add("dropping");
    });
    for (const name of ["dragleave", "drop"]) {
      element.addEventListener(name, () => element.classList.remove("dropping"));
    }
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
      if (!file || !element.isConnected) return;
      event.preventDefault();
      take(file);
    });
  }

  async function webcam(dialog, take) {
    const video = dialog.querySelector("video");
    const told = dialog.querySelector("p");
    const shoot = dialog.querySelector("[data-shoot]");
    told.textContent = "";
    shoot.disabled = true;
    dialog.showModal();
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch {
      told.textContent = "No camera can be used here: allow this page to use it, or choose a file.";
      return;
    }
    const end = () => stream.getTracks().forEach((track) => track.stop());
    if (!dialog.open) return end();
    dialog.addEventListener("close", end, { once: true });
    video.srcObject = stream;
    await video.play();
    shoot.disabled = false;
    shoot.onclick = () => {
      const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => {
        dialog.close();
        take(new File([blob], "webcam.png", { type: "image/png" }));
      });
    };
  }

  // Answers

  function answer(element, trigger) {
    const explain = (token) => trigger("token", { index: Number(token.dataset.index) });
    element.addEventListener("click", (event) => {
      const token = event.target.closest(".token");
      if (event.target.closest("[data-halt]")) trigger("halt", {});
      if (!token) return;
      reach(token);
      explain(token);
    });
    element.addEventListener("keydown", (event) => {
      const token = event.target.closest(".token");
      if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
      const all = [...element.querySelectorAll(".token")];
      const place = all.indexOf(token);
      const next = {
        ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1,
        Home: 0, End: all.length - 1,
      }[event.key];
      if (next === undefined && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      if (next === undefined) explain(token);
      else if (all[next]) reach(all[next]);
    });
  }

  // One token of an answer is reached by Tab: the last that had the focus.
  function reach(token) {
    for (const one of token.parentElement.querySelectorAll(".token")) one.tabIndex = -1;
    token.tabIndex = 0;
    token.focus();
  }

  function choose(token, isChosen) {
    token?.classList.toggle("current", isChosen);
    token?.setAttribute("aria-current", isChosen);
  }

  function panel(element, trigger, watch) {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-go]");
      if (button) {
        const { place } = element.querySelector(".why").dataset;
        trigger("token", { place: Number(place), index: Number(button.dataset.go) });
      }
    });
    watch("value", () => {
      for (const one of document.querySelectorAll(".token.current")) choose(one, false);
      const why = element.querySelector(".why");
      if (!why) return;
      choose(document.querySelector(
        `#answer-${why.dataset.place} .token[data-index="${why.dataset.index}"]`), true);
      why.scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
    });
  }

  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  // Errors

  function error(element, props, watch) {
    watch("value", () => {
      const told = element.textContent.trim() !== "";
      const control = props.control && document.querySelector(props.control);
      if (control) {
        control.setAttribute("aria-invalid", told);
        control.setAttribute("aria-describedby", element.querySelector("p").id);
      }
      if (told) element.scrollIntoView({ block: "center", behavior: calm() ? "auto" : "smooth" });
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation(); // the question would be sent a second time
    document.querySelector("#compare")?.click();
  }, true);

  return { add, answer, error, files, form, panel, image, way };
})();
