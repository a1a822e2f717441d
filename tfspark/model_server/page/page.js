"use strict";

const VERBS = {
  "tensorflow/serving/classify": "classify",
  "tensorflow/serving/regress": "regress",
};

function setHealth(text, good) {
  const health = document.getElementById("health");
  health.textContent = text;
  health.className = good ? "good" : "bad";
}

function options(select, values) {
  select.replaceChildren(...values.map((value) => new Option(value, value)));
}

/** One model: its versions, the chosen signature, and a form that sends a row. */
class ModelView {
  constructor(model) {
    this.model = model;
    this.root = document.getElementById("model").content.cloneNode(true).firstElementChild;
    this.root.dataset.model = model.name;
    this.find("h2").textContent = model.name;
    this.find(".versions").replaceChildren(...model.versions.map((v) => this.line(v)));
    this.loaded = model.versions.filter((v) => v.signatures);
    options(this.find(".version"), this.loaded.map((v) => v.version));
    this.find(".version").addEventListener("change", () => this.showVersion());
    this.find(".signature").addEventListener("change", () => this.showSignature());
    this.find("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    if (this.loaded.length) this.showVersion();
    else this.find("form").hidden = true;
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  line(version) {
    const labels = Object.entries(this.model.labels).filter(([, v]) => v === version.version).map(([name]) => name);
    const item = document.createElement("li");
    const parts = [`version ${version.version}`, ...labels, version.state.toLowerCase()];
    if (version.error) parts.push(version.error);
    if (version.requests) parts.push(`${version.requests} requests in ${version.calls} calls`);
    item.textContent = parts.join(" · ");
    return item;
  }

  get version() {
    return this.loaded.find((v) => String(v.version) === this.find(".version").value);
  }

  showVersion() {
    options(this.find(".signature"), Object.keys(this.version.signatures));
    if (this.version.signatures.serving_default) this.find(".signature").value = "serving_default";
    const card = this.find(".card");
    card.hidden = !this.version.card;
    card.querySelector("pre").textContent = this.version.card ? JSON.stringify(this.version.card, null, 2) : "";
    this.showSignature();
  }

  showSignature() {
    const signature = this.version.signatures[this.find(".signature").value];
    const rows = [["in", signature.inputs], ["out", signature.outputs]].flatMap(([kind, tensors]) =>
      Object.entries(tensors).map(([name, type]) => [kind, name, type]));
    this.find("tbody").replaceChildren(...rows.map((cells) => {
      const row = document.createElement("tr");
      row.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
      return row;
    }));
    const example = VERBS[signature.method] ? {} : signature.example;
    this.find("textarea").value = JSON.stringify(example);
    this.show("", false);
  }

  show(text, failed) {
    this.find(".answer").textContent = text;
    this.find(".answer").classList.toggle("failed", failed);
  }

  async send() {
    const name = this.find(".signature").value;
    const verb = VERBS[this.version.signatures[name].method] || "predict";
    let row;
    try {
      row = JSON.parse(this.find("textarea").value);
    } catch (error) {
      this.show(`This is no JSON: ${error.message}`, true);
      return;
    }
    const body = { signature_name: name, [verb === "predict" ? "instances" : "examples"]: [row] };
    const path = `/v1/models/${encodeURIComponent(this.model.name)}/versions/${this.version.version}:${verb}`;
    try {
      const response = await fetch(path, { method: "POST", body: JSON.stringify(body) });
      const answer = await response.text();
      this.show(answer, !response.ok);
    } catch (error) {
      this.show(`The server did not answer: ${error.message}`, true);
      setHealth("not reached", false);
    }
  }
}

async function load() {
  try {
    const answer = await (await fetch("/overview")).json();
    setHealth(answer.healthy ? "healthy" : "not healthy", answer.healthy);
    document.getElementById("models").replaceChildren(...answer.models.map((model) => new ModelView(model).root));
  } catch (error) {
    setHealth(`not reached: ${error.message}`, false);
  }
}

load();
