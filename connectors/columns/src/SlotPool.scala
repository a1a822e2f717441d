package tfspark.columns

import java.io.{File, IOException}
import java.nio.{ByteBuffer, MappedByteBuffer}
import java.nio.channels.FileChannel
import java.nio.file.{Files, Path, Paths, StandardOpenOption}
import java.nio.file.attribute.PosixFilePermissions
import java.security.SecureRandom
import java.util.concurrent.atomic.AtomicLong

import scala.collection.mutable
import scala.util.control.NonFatal

import org.apache.spark.SparkEnv
import org.apache.spark.unsafe.Platform
import org.slf4j.LoggerFactory

/** Memory that this executor shares with other processes of its user: slots, into which tasks write columns.
  *
  * It is an unlinked file in /dev/shm, which others open as `/proc/<pid>/fd/<n>`. The file begins with a key, by which
  * a reader checks that its path is this file. Then comes a word for each slot: the ticket of the message that a reader
  * may still read, or 0. The reader sets the word to 0 when it is done.
  *
  * Each slot is written once before it is used through the map. Otherwise, if /dev/shm is full, access to a page would
  * kill the JVM.
  */
final class SlotPool private (channel: FileChannel, val path: String, val key: Array[Byte], val map: MappedByteBuffer) {
  import SlotPool._

  // Valid as long as `map` is referenced.
  private val address = SlotPool.addressOf(map)

  private val free = mutable.ArrayBuffer(0)
  private var made = 1
  private var full = false
  private val tickets = new AtomicLong()

  /** A free slot, or -1. */
  def take(): Int = synchronized {
    if (free.nonEmpty) free.remove(free.length - 1)
    else if (!full && made < Slots && allocate(made)) {
      made += 1
      made - 1
    } else -1
  }

  def giveBack(slot: Int): Unit = synchronized {
    // The word tells a late reader that the slot no longer has its message.
    release(slot)
    free += slot
  }

  private def allocate(slot: Int): Boolean =
    try {
      fill(channel, slot)
      true
    } catch {
      case e: IOException =>
        full = true
        log.warn(s"There is room for $slot slots in $path, the rest of the rows goes through sockets: ${e.getMessage}")
        false
    }

  def nextTicket(): Long = tickets.incrementAndGet()

  def startOf(slot: Int): Long = SlotPool.startOf(slot)

  def addressOf(slot: Int): Long = address + startOf(slot)

  def wordOf(slot: Int): Long = FirstWord + slot * 8L

  def isFree(slot: Int): Boolean = Platform.getLong(null, address + wordOf(slot)) == 0L

  /** Tell readers that a message is in the slot. */
  def hold(slot: Int, ticket: Long): Unit = Platform.putLong(null, address + wordOf(slot), ticket)

  private def release(slot: Int): Unit = Platform.putLong(null, address + wordOf(slot), 0L)
}

object SlotPool {
  private val log = LoggerFactory.getLogger(classOf[SlotPool])

  /** Bytes of a slot. Rows are sent when they fill most of a slot; a larger message goes through the socket. */
  val SlotBytes: Int = 4 << 20

  /** Maximum number of slots of an executor. */
  private val Slots = 96

  private val KeyBytes = 32
  private val FirstWord = 64L
  private val FirstSlot = 4096L

  private var opened = false
  private var pool: SlotPool = null

  /** The pool of this JVM, or None if no shared memory is available. */
  def get(): Option[SlotPool] = synchronized {
    if (!opened) {
      opened = true
      pool = directories.iterator.flatMap(d => open(d)).take(1).toList.headOption.orNull
      if (pool == null) log.warn("No directory for shared memory was found, so rows go through sockets")
    }
    Option(pool)
  }

  private def directories: Seq[Path] = {
    val conf = SparkEnv.get.conf
    val local = sys.env.get("LOCAL_DIRS").orElse(sys.env.get("SPARK_LOCAL_DIRS")).getOrElse(conf.get("spark.local.dir", "/tmp"))
    (Array("/dev/shm") ++ local.split(",")).map(d => Paths.get(d.trim)).filter(Files.isDirectory(_)).toSeq
  }

  private def open(directory: Path): Option[SlotPool] =
    try {
      val mode = PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------"))
      val file = Files.createTempFile(directory, "tfspark-", "", mode)
      try {
        val channel = FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)
        try Some(make(channel, file))
        catch {
          case e: Throwable =>
            channel.close()
            throw e
        }
      } finally Files.deleteIfExists(file)
    } catch {
      case NonFatal(e) =>
        log.info(s"$directory is no place for shared memory: $e")
        None
    }

  private def make(channel: FileChannel, file: Path): SlotPool = {
    val key = new Array[Byte](KeyBytes)
    new SecureRandom().nextBytes(key)
    val head = ByteBuffer.allocate(FirstSlot.toInt)
    head.put(key).rewind()
    while (head.hasRemaining) channel.write(head, head.position())
    // If there is no room for one slot, this fails, and the next directory is tried.
    fill(channel, 0)
    val map = channel.map(FileChannel.MapMode.READ_WRITE, 0, FirstSlot + Slots.toLong * SlotBytes)
    new SlotPool(channel, pathOf(file), key, map)
  }

  private def startOf(slot: Int): Long = FirstSlot + slot.toLong * SlotBytes

  private def fill(channel: FileChannel, slot: Int): Unit = {
    val zeros = ByteBuffer.allocate(SlotBytes)
    while (zeros.hasRemaining) channel.write(zeros, startOf(slot) + zeros.position())
  }

  /** The path by which other processes open a file that is open in this process. */
  private def pathOf(file: Path): String = {
    val pid = new File("/proc/self").getCanonicalFile.getName
    val ours = new File("/proc/self/fd").list().find { fd =>
      try Files.readSymbolicLink(Paths.get("/proc/self/fd", fd)) == file.toRealPath()
      catch { case _: IOException => false }
    }
    val path = s"/proc/$pid/fd/${ours.getOrElse(throw new IOException(s"$file is not among the open files of this process"))}"
    // Check that the path can be opened; a sandbox may forbid it.
    FileChannel.open(Paths.get(path), StandardOpenOption.READ, StandardOpenOption.WRITE).close()
    path
  }

  /** The address of mapped memory; Spark opens java.nio to itself in every JVM that it starts. */
  private def addressOf(map: MappedByteBuffer): Long = {
    val field = classOf[java.nio.Buffer].getDeclaredField("address")
    field.setAccessible(true)
    field.getLong(map)
  }
}
