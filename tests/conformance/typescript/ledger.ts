// What services really did; the twin of tests/conformance/ledger.py, same file format.
import { appendFileSync, readFileSync } from "node:fs";

export class Ledger {
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  /** Append a line; the number of lines of `key` afterwards. */
  add(key: string, text = ""): number {
    appendFileSync(this.#path, `${key}\t${text}\n`);
    return this.count(key);
  }

  count(key: string): number {
    const start = `${key}\t`;
    return readFileSync(this.#path, "utf8")
      .split("\n")
      .filter((line) => line.startsWith(start)).length;
  }
}
