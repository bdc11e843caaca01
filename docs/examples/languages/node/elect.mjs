#!/usr/bin/env node
// Works while the agent of this pod holds the lock. Each unit of work is a PUT to URL, with the fencing token.
//
//     elect.mjs URL
import { setTimeout as sleep } from "node:timers/promises";

const AGENT = process.env.LEASEHOLD_AGENT ?? "http://127.0.0.1:4040";
const UNIT = 500; // milliseconds: no unit of work takes longer
const url = process.argv[2];

/** The events of the agent, by their names, until the connection ends. */
async function* events() {
  const answer = await fetch(`${AGENT}/v1/events`);
  let text = "";
  for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
    const lines = (text + part).split("\n");
    text = lines.pop();
    for (const line of lines) if (line.startsWith("event: ")) yield line.slice("event: ".length);
  }
}

/** The fencing token, and for how many milliseconds from now it may be worked under it. */
async function timeToWork() {
  const asked = performance.now();
  const answer = await fetch(`${AGENT}/v1/hold`, { signal: AbortSignal.timeout(1000) });
  const hold = await answer.json();
  return { token: hold.fencingToken, left: asked + hold.stopInMilliseconds - performance.now() };
}

async function work(token, lost) {
  const signal = AbortSignal.any([lost, AbortSignal.timeout(UNIT)]);
  const answer = await fetch(url, { method: "PUT", body: "worked", headers: { "Fencing-Token": token }, signal });
  if (!answer.ok) console.error(`refused: ${answer.status}`);
}

async function workUntil(lost) {
  while (!lost.aborted) {
    try {
      const { token, left } = await timeToWork();
      await (left > UNIT ? work(token, lost) : sleep(100));
    } catch (error) {
      if (lost.aborted) return;
      console.error(error.message);
      await sleep(100);
    }
  }
}

for (;;) {
  let hold = null;
  try {
    for await (const event of events()) {
      if (event === "lost" || event === "waiting") {
        hold?.abort();
        hold = null;
      } else if (!hold) {
        hold = new AbortController();
        workUntil(hold.signal);
      }
    }
  } catch (error) {
    console.error(error.message);
  }
  hold?.abort();
  await sleep(1000);
}
