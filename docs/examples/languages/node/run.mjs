#!/usr/bin/env node
// Does COUNT units of work under `leasehold run`. Each is a PUT to URL, with the fencing token.
//
//     leasehold run --lock NAME -- run.mjs URL COUNT
import { readFileSync } from "node:fs";

const { LEASEHOLD_TOKEN, LEASEHOLD_DEADLINE_FILE } = process.env;
const UNIT = 500; // milliseconds: no unit of work takes longer
const [url, count] = process.argv.slice(2);

// The lock is lost, or somebody wants us to end: the unit that was begun is finished.
let stop = false;
process.on("SIGTERM", () => { stop = true; });

const words = (file) => readFileSync(file, "utf8").trim().split(" ");

/** For how many milliseconds it is held; less than 0 once it is lost. */
function left() {
  const [deadline, standing] = words(LEASEHOLD_DEADLINE_FILE);
  return standing === "lost" ? -1 : 1000 * (deadline - words("/proc/uptime")[0]);
}

for (let unit = 0; unit < count; unit++) {
  if (stop || left() < UNIT) {
    console.error("stopped before the end");
    process.exit(1);
  }
  const headers = { "Fencing-Token": LEASEHOLD_TOKEN };
  const answer = await fetch(url, { method: "PUT", body: "worked", headers, signal: AbortSignal.timeout(UNIT) });
  if (!answer.ok) throw new Error(`refused: ${answer.status}`);
}
