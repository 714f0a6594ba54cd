// KEDA's objects by types generated from KEDA's own definitions: reads objects as JSON, says what is wrong with
// them. These know the type of every field, and let unknown fields pass; keda.schema.json is the other way round.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = `${process.argv[2]}/node_modules/@kubernetes-models/keda`;
for (const thing of JSON.parse(readFileSync(0))) {
  if (!thing.apiVersion.startsWith("keda.sh/")) continue;
  const kinds = await import(pathToFileURL(`${folder}/${thing.apiVersion}/index.js`));
  try {
    new kinds[thing.kind](thing).validate();
  } catch (error) {
    console.log(`keda: ${thing.kind} ${thing.metadata.name}: ${error.message}`);
  }
}
