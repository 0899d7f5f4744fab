// The page of segret serve: takes a photograph, sends it, and offers the result.
import { percent, show } from "./serve_stage.js";

const get = (id) => document.getElementById(id);
const server = fetch("/status").then((answer) => answer.json());
const ASK_EVERY = 1000; // milliseconds: for the length of the queue
let shows = 0, request = null, photograph = null, stem = "photograph", label = "", json = "";

async function segment(file, name) {
  const { classes, limits } = await server;
  request?.abort();
  fail("");
  if (file.size > limits.max_bytes) {
    return refused({ message: `${name} has ${megabytes(file.size)}; the limit is ${megabytes(limits.max_bytes)}: choose a smaller one.` }, name);
  }
  const begun = performance.now(), stop = busy(begun);
  try {
    const [answer, picture] = await Promise.all([post(file, "json,label,raw"), decoded(file)]);
    const content = JSON.parse(await answer.text());
    const bytes = await unpacked(content.raw), pixels = content.json.width * content.json.height;
    photograph = file;
    stem = name.replace(/\.[^.]*$/, "") || "photograph";
    label = content.label;
    json = `${JSON.stringify(content.json, null, 1)}\n`;
    document.body.classList.add("has-result");
    get("result").hidden = false;
    show({
      ...content.json, colors: classes.map((one) => one.color), names: classes.map((one) => one.name),
      ids: bytes.subarray(0, pixels), confidence: bytes.subarray(pixels),
    }, picture);
    stop();
    finish(content.json, answer.timing, (performance.now() - begun) / 1000, picture);
  } catch (error) {
    if (error.name !== "AbortError") refused(error, name);
  } finally {
    stop();
  }
}

// Says why there is no result; that of an earlier photograph would be taken for it.
function refused({ message, status }, name) {
  get("result").hidden = true;
  document.body.classList.remove("has-result");
  fail(status === 422 ? `${name} is not a photograph that can be read: choose ${get("formats").textContent}.` : message);
}

function finish(found, timing, seconds, picture) {
  const model = Number(/model;dur=(\d+)/.exec(timing)?.[1] ?? 0) / 1000;
  get("took").textContent = `${found.width} × ${found.height} pixels in ${seconds.toFixed(2)} s, of which the model took ${model.toFixed(2)} s.`;
  const largest = [...found.classes].sort((a, b) => b.share - a.share).slice(0, 3);
  announce(`Done in ${seconds.toFixed(1)} seconds: ${largest.map((one) => `${one.name} ${percent(one.share)}`).join(", ")}.`);
  if (!picture) fail("This browser cannot show a photograph of this kind; the classes are shown without it.");
  get("result").focus({ preventScroll: true });
  get("result").scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "nearest" });
}

function post(file, format, options = "") { // XMLHttpRequest: fetch tells nothing of what is sent
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    request = sending;
    sending.open("POST", `/predict?format=${format}${options}`);
    sending.responseType = "blob";
    sending.upload.onprogress = (event) => step("Sending", event.loaded / event.total);
    sending.upload.onload = () => step("Segmenting", null);
    sending.onabort = () => reject(new DOMException("canceled", "AbortError"));
    sending.onerror = () => reject(new Error("The server does not answer: is it still running?"));
    sending.onload = async () => {
      if (sending.status !== 200) return reject(Object.assign(new Error(await reason(sending)), { status: sending.status }));
      sending.response.timing = sending.getResponseHeader("server-timing");
      resolve(sending.response);
    };
    sending.setRequestHeader("content-type", "application/octet-stream");
    sending.send(file);
  });
}

async function reason(sending) {
  try {
    const { error } = JSON.parse(await sending.response.text());
    return `${error[0].toUpperCase()}${error.slice(1)}.`;
  } catch {
    return `The server answers with status ${sending.status}.`;
  }
}

async function unpacked(base64) {
  const packed = Uint8Array.from(atob(base64.split(",")[1]), (one) => one.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function decoded(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return null; // such as TIFF; the server may read it all the same
  }
}

// Shows how far it is; returns a function that ends this.
function busy(begun) {
  const mine = ++shows;
  let queue = "", asked = begun;
  get("progress").hidden = false;
  announce("Sending the photograph.");
  step("Sending", 0);
  const timer = setInterval(() => {
    const now = performance.now();
    get("clock").textContent = `${((now - begun) / 1000).toFixed(1)} s${queue}`;
    if (now - asked < ASK_EVERY) return;
    asked = now;
    fetch("/status").then((answer) => answer.json()).then(({ waiting }) => {
      queue = waiting > 1 ? `, ${waiting} photographs in the queue` : "";
    }, () => {});
  }, 100);
  return () => {
    clearInterval(timer);
    if (mine === shows) get("progress").hidden = true; // else a later photograph is on its way
  };
}

function step(text, fraction) {
  get("step").textContent = text;
  if (fraction === null) get("bar").removeAttribute("value");
  else get("bar").value = fraction;
}

function calm() { return matchMedia("(prefers-reduced-motion: reduce)").matches; }

function announce(text) { get("announcement").textContent = text; }

function fail(text) {
  get("error").textContent = text;
  get("error").hidden = !text;
  if (text) get("error").scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "nearest" });
}

function megabytes(size) { return `${(size / 1e6).toFixed(1)} MB`; }

// Where photographs come from.
get("choose").addEventListener("click", () => get("file").click());
get("file").addEventListener("change", () => {
  const [file] = get("file").files;
  get("file").value = "";
  if (file) segment(file, file.name);
});
get("cancel").addEventListener("click", () => { request?.abort(); announce("Canceled."); });
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const address = button.dataset.sample;
    segment(await (await fetch(address)).blob(), address.split("/").pop());
  });
}
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) segment(file, file.name);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); get("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) get("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  get("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) segment(file, file.name);
  else fail("That is no file: save the photograph first, then drop or choose it.");
});

// The camera.
let stream = null;
get("camera").addEventListener("click", async () => {
  try {
    if (!navigator.mediaDevices) throw new Error("browsers give it only to https and to this machine itself");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    return fail(`The camera cannot be used: ${error.message}.`);
  }
  get("video").srcObject = stream;
  get("camera-dialog").showModal();
});
get("close-camera").addEventListener("click", () => get("camera-dialog").close());
get("camera-dialog").addEventListener("close", () => stream?.getTracks().forEach((track) => track.stop()));
get("shoot").addEventListener("click", () => {
  const video = get("video"), canvas = document.createElement("canvas");
  if (!video.videoWidth) return;
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  get("camera-dialog").close();
  canvas.toBlob((blob) => segment(blob, "camera.jpg"), "image/jpeg", 0.92);
});

// Downloads: what is not here yet is asked for.
for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", async () => {
    const { format, ending } = button.dataset;
    button.disabled = true;
    try {
      if (format === "label") save(label, ending);
      else if (format === "json") saveBlob(new Blob([json], { type: "application/json" }), ending);
      else {
        const opacity = format === "overlay" ? `&opacity=${get("opacity").value / 100}` : "";
        saveBlob(await post(photograph, format, opacity), ending);
      }
    } catch (error) {
      fail(error.message);
    } finally {
      button.disabled = false;
    }
  });
}

function saveBlob(blob, ending) {
  const address = URL.createObjectURL(blob);
  save(address, ending);
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

function save(address, ending) {
  const link = document.createElement("a");
  link.href = address;
  link.download = stem + ending;
  link.click();
}
